"""Modules and names that have moved: by their old places they work for one release, with a warning that names the new ones."""
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from types import CodeType, ModuleType
from typing import Any

MOVED = {
    "atlas": "explore.umap_map",
    "baselines.byol": "methods.byol",
    "baselines.co2": "methods.co2",
    "baselines.compress": "methods.compress",
    "baselines.invp": "methods.invp",
    "baselines.moco_v2": "methods.moco_v2",
    "baselines.pirl": "methods.pirl",
    "baselines.simclr": "methods.simclr",
    "baselines.simsiam": "methods.simsiam",
    "baselines.supervised": "methods.supervised",
    "baselines.swav": "methods.swav",
    "building": "methods.building",
    "claims.evidence": "studies.evidence",
    "claims.few_labels": "studies.few_labels",
    "claims.soft_and_binary": "studies.soft_and_binary",
    "claims.teacher_and_student": "studies.teacher_and_student",
    "claims.unbalanced": "studies.unbalanced",
    "cli_eval": "cli.evaluate",
    "compare": "studies.compare",
    "comparison": "studies.tables",
    "contract": "engine.contract",
    "explorer": "explore.explorer",
    "fine_tuning": "protocols.fine_tuning",
    "folders": "sources.index",
    "fused": "kernels.triton_attention",
    "gallery": "explore.gallery",
    "gpu_run": "explore.gpu_notebooks",
    "low_precision": "kernels.bfloat16_attention",
    "neighbours": "explore.neighbours",
    "planning": "engine.estimate",
    "recipes": "recipe",
    "runs": "engine.runs",
    "scale": "engine.scale",
    "search": "kernels.nearest_neighbours",
    "sharing": "engine.model_card",
    "torchvision_sets": "sources.torchvision_sets",
    "baselines": "methods",
    "claims": "studies",
}


LEFT = {  # by the module that names have left and the one where they are: names, `old=new` where that is another one
    "baselines.moco_v2": {
        "method": "company=shuffle_order own_rows",
    },
    "cli": {
        "cli.options": "BatchSize Change DataSpec Device DryRun Epochs Figures MethodName Out Processes RecipeName "
                       "Resume Root Seed Steps Supervised Tracker Workers run_directory",
        "cli.train": "closing command finish=finish_command isd_train plan_in_words recipe_of run",
        "engine.finish": "final_scores table table_rows train_supervised what_was_run",
        "engine.launch": "companions end_with_first free_port lost one_sentence places_of process_count "
                         "share_of_cores=with_threads start_companion watch",
        "explore.figures": "draw_figures figures_of plot_curves",
        "methods.building": "read_sets",
        "methods.choosing": "change_setting choose_recipe",
    },
    "cli_eval": {
        "cli.options": "Count=ProtocolEpochs Encoders=OneEncoder Seeds=SeedCount",
        "engine.evaluate_run": "answer encoders_of file_of images_for ledger_of to_ask",
        "kernels.devices": "pick_device",
        "protocols.answers": "Asked=EvalTarget Ledger=ResultCache Question=EvalConfig add_row answers as_saved "
                             "check_numbers labelled line_of linear matching neighbours rows_file rows_of titles top "
                             "tuned",
    },
    "compare": {
        "cli.compare": "Budget Evaluations Jobs Names Settings command every_method isd_compare listed numbers report",
        "cli.options": "BatchSize=CompareBatch DataSpec Device Out=CompareOut RecipeName Root Seeds=SeedList",
        "studies.compare": "differences=changed_settings passes=count_passes",
    },
    "comparison": {
        "studies.tables": "write_table=write_comparison",
    },
    "data": {
        "data": "fit=resize_center_crop spread=subsample_evenly upright=exif_transpose",
        "errors": "kept_if_allowed locked nearest=suggest refusal",
        "kernels.devices": "has_bfloat16 send=to_device",
        "sources.digits": "digits place",
        "sources.door": "load_images",
        "sources.folders": "class_folders identity image_files kind_of look_into read_files report_unreadable "
                           "same_channels suffixes",
        "sources.layout": "pick_held_out read_folder",
    },
    "encoders": {
        "kernels.backbones": "conv_bn small_resnet tiny torchvision_resnet",
    },
    "engine.state": {
        "engine.state": "restore_session=restore_train_state save_session=save_train_state",
    },
    "engine.evaluate_source": {
        "engine.evaluate_source": "fingerprint=weights_fingerprint",
    },
    "evaluation": {
        "embedding": "check_images=check_request in_batches",
        "kernels.linear_classifier": "one_thread",
        "kernels.scores": "bootstrap_interval=accuracy_interval",
    },
    "explorer": {
        "cli.explore": "HtmlFile LabOptions Limit Moments Opening command isd_explore open_lab produce write_notebook",
        "cli.options": "DataSpec Root RunFolder",
        "explore.page_data": "draw_picture pack sheet_columns sheets to_square",
    },
    "folders": {
        "sources.layout": "as_images read_indexed",
    },
    "fused": {
        "kernels.triton_attention": "attend_fused=fused_attention",
    },
    "gallery": {
        "explore.gallery": "Moment=CheckpointKey",
    },
    "gpu_run": {
        "engine.finish": "Finished finish",
        "explore.figures": "LiveCurves draw main_axes plot_rows train_or_go_on",
        "protocols.answers": "Together",
        "protocols.scorer": "features_of sample_evaluator score_features",
        "sources.door": "read_stl10",
    },
    "isd": {
        "kernels.attention": "similarities",
        "kernels.buffers": "average_over_processes call_apart",
        "method": "FromRecipe WithTeacher width_of",
    },
    "kernels.scores": {
        "kernels.scores": "bootstrap_interval=accuracy_interval",
    },
    "loss": {
        "kernels.attention": "attend=streaming_attention check_looks=check_vectors wide=at_least_float32",
        "kernels.blocks": "attend_blocks=blockwise_attention",
    },
    "low_precision": {
        "kernels.bfloat16_attention": "attend_bfloat16=bfloat16_attention",
    },
    "method": {
        "kernels.buffers": "functional_forward",
    },
    "methods.checkpoints": {
        "methods.checkpoints": "find_layout=key_layout_of",
    },
    "methods.foreign_names": {
        "methods.foreign_names": "Layout=KeyLayout",
    },
    "neighbours": {
        "explore.neighbours": "popularity=hubness",
    },
    "queue": {
        "kernels.keys": "unit=l2_normalize",
    },
    "recipes": {
        "recipe": "are=all_instances fitted=coerce need=require",
    },
    "runs": {
        "kernels.devices": "cores machine",
        "protocols.storage": "Saver=CheckpointTimer Stopped load_checkpoint save_checkpoint stop_signals",
    },
    "scale": {
        "methods.sync_batch_norm": "SumOverProcesses SyncBatchNorm centre sync_batch_norm",
    },
    "sharing": {
        "engine.model_card": "score_table=scores_in_markdown",
    },
    "sources.given": {
        "sources.given": "name_of=table_entry",
    },
    "teacher": {
        "kernels.buffers": "pure_call=functional_forward write_buffers=load_buffers_",
    },
    "training": {
        "engine.state": "Diverged Session=TrainState backward check_encoders check_losses check_weights compiler "
                        "count_seconds micro_batches prepare=prepare_training restore_session=restore_train_state "
                        "save_session=save_train_state shard start_processes synchronize",
        "engine.training": "Log=RunLogger Progress agreed batches check_tracker due=is_due look "
                           "run_session=run_training start_tracker",
        "sources.batches": "Plan=EpochSampler Rows=RankBatches decoders leave_signals",
    },
    "views": {
        "kernels.view_transforms": "Draw=AugmentParams add_noise_ apply_draw=augment blur_reach blur_weights crop_boxes "
                                   "luma make_grey_ resample resize_weights rotate scale_brightness_ scale_contrast_ "
                                   "scale_saturation_ turn_hue_",
    },
}
GONE = {  # no name of today takes the same arguments; what comes next to it
    "gpu_run.where": "kernels.devices.pick_device chooses a device by its name",
    "building.check_options": "methods.building.check_option checks one of them",
    "cli.read_value": "methods.choosing.change_setting reads the value of a setting",
    "cli.scores_of": "protocols.scorer.score_encoders scores encoders",
    "cli_eval.stoppable": "engine.launch.one_sentence ends a command with one sentence",
    "compare.number_of_images": "studies.compare.comparable_sets reads and checks the images",
    "compare.score": "protocols.scorer.score_encoders scores encoders",
    "data.held_out_folders": "sources.splits holds the names of folders, train_names and test_names",
    "data.read_split": "sources.layout.read_folder reads a folder",
    "data.walk": "sources.folders.iter_image_folders goes through folders",
    "evaluation.take_epoch": "kernels.linear_classifier.sgd_step takes one step",
    "fine_tuning.labelled_batches": "sources.batches.read_batches reads batches",
    "folders.sort_tiny_imagenet": "sources.door.load_sets reads the folder of Tiny-ImageNet as it is",
    "gpu_run.check_pixels": "sources.door.check_pixels takes the images by name, and two sizes",
    "gpu_run.read_sets_of_files": "methods.building.read_sets reads the images of a recipe",
    "training.measure": "engine.training.measure takes a training alone",
}

NAMES = {f"{old}.{name.partition('=')[0]}": f"{today}.{name.rpartition('=')[2]}"  # places of today by old ones
         for old, places in LEFT.items() for today, names in places.items() for name in names.split()}
ORIGINS: dict[str, list[str]] = {}  # by a module of today: those whose names lead to it, itself or by an old name
for _old in [*LEFT, *(place.rpartition(".")[0] for place in GONE)]:
    ORIGINS.setdefault(MOVED.get(_old, _old), []).append(_old)


def moved_name(module: str, name: str) -> Any:
    "What has moved out of a module, from where it is now."
    places = [f"{origin}.{name}" for origin in ORIGINS.get(module.removeprefix("isd_nb."), ())]
    for old in places:
        if old in GONE:  # an `ImportError`: `from ... import` would replace the sentence of another one
            raise ImportError(f"{name} is no longer in isd_nb.{old.rpartition('.')[0]}: isd_nb.{GONE[old]}", name=module)
    if not (found := [NAMES[old] for old in places if old in NAMES]):
        raise AttributeError(f"module {module!r} has no attribute {name!r}", name=name, obj=sys.modules.get(module))
    place, _, today = found[0].rpartition(".")
    is_now = "" if today == name else f", as {today}"
    warnings.warn(f"{name} has moved and goes from {module} with the next release: import it from isd_nb.{place}{is_now}",
                  FutureWarning, stacklevel=3)
    return getattr(import_module(f"isd_nb.{place}"), today)


class LeftByNames(SourceFileLoader):
    "Loads a module that names have left: those that it lacks come from `moved_name`."

    def exec_module(self, module: ModuleType) -> None:
        "Run its code, and give it a door to what has left."
        super().exec_module(module)
        module.__dict__.setdefault("__getattr__", lambda name: moved_name(module.__name__, name))


class MovedModules(MetaPathFinder, Loader):
    "Asked first: the old name of a module inside a package that has moved must not load its file a second time."

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        "A module of this package that has moved, by its old name; or one that names have left."
        package, _, module = name.partition(".")
        if package == "isd_nb" and module in MOVED:
            return ModuleSpec(name, self)
        if package != "isd_nb" or module not in ORIGINS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:  # not out of an archive
            spec.loader = LeftByNames(name, spec.loader.path)
        return spec

    def get_code(self, name: str) -> CodeType | None:  # for `python -m`
        "The code of the module of today."
        spec = find_spec(f"isd_nb.{MOVED[name.removeprefix('isd_nb.')]}")
        return spec.loader.get_code(spec.name) if spec and isinstance(spec.loader, InspectLoader) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        "A module to be replaced: the one of today keeps its own name and origin."
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        "Put the module of today in its place."
        today = f"isd_nb.{MOVED[module.__name__.removeprefix('isd_nb.')]}"
        warnings.warn(f"{module.__name__} has moved and goes with the next release: import from {today}", FutureWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(today)
