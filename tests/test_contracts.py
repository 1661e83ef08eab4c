"""What others rely on: names, signatures and arrays, one meaning for a name, old places of names, a light start."""
import ast
import importlib
import inspect
import re
import subprocess
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from isd_nb import evaluation
from isd_nb._moved import NAMES
from isd_nb.data import ImageSet
from isd_nb.encoders import BackboneConfig, Encoder, build_backbone, channel_statistics, load_encoder
from isd_nb.errors import InputError
from isd_nb.evaluation import knn_accuracy, linear_accuracy
from isd_nb.isd import ISD, Method
from isd_nb.kernels.linear_classifier import fit_linear
from isd_nb.loss import soft_label_loss, soft_labels, streaming_soft_label_loss
from isd_nb.protocols import collapse
from isd_nb.queue import AnchorQueue
from isd_nb.teacher import EMATeacher
from isd_nb.views import STRONG, Views, augment, random_draw

PACKAGE = Path(__file__).parent.parent / "isd_nb"
TEMPERATURES = dict(student_temperature=0.1, teacher_temperature=0.02)
FOUR = ("train_features", "train_labels", "test_features", "test_labels")

# The arguments that a caller may rely on, in their order, and the defaults that have been promised.
SIGNATURES: list[tuple[Callable, tuple[str, ...], dict[str, Any]]] = [
    (AnchorQueue, ("size", "dim"), {}),
    (AnchorQueue.enqueue, ("self", "keys"), {}),
    (soft_labels, ("keys", "anchors", "temperature"), {}),
    (soft_label_loss, ("queries", "keys", "anchors", *TEMPERATURES), TEMPERATURES),
    (streaming_soft_label_loss, ("queries", "keys", "anchors", *TEMPERATURES), TEMPERATURES),
    (EMATeacher, ("student", "momentum"), {"momentum": 0.99}),
    (EMATeacher.update, ("self", "student"), {}),
    (ISD.forward, ("self", "view_q", "view_k"), {}),
    (Method.update, ("self", "output"), {}),
    (Views, ("recipe", "size"), {}),
    (load_encoder, ("path", "which"), {"which": "teacher"}),
    (knn_accuracy, (*FOUR, "k"), {"k": 20}),
    (linear_accuracy, FOUR, {}),
]


def unit(*shape: int) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=1)


@pytest.mark.parametrize("function, names, defaults", SIGNATURES, ids=lambda v: getattr(v, "__qualname__", ""))
def test_a_promised_name_takes_what_was_promised(function: Callable, names: tuple[str, ...], defaults: dict) -> None:
    found = inspect.signature(function).parameters
    assert tuple(found)[:len(names)] == names
    assert {name: found[name].default for name in defaults} == defaults
    more = [p for name, p in found.items() if name not in names and p.kind is not p.VAR_KEYWORD]
    assert all(p.default is not p.empty for p in more), "an argument more must have a default"


def test_the_queue_keeps_the_order_of_any_number_of_keys() -> None:
    queue, keys = AnchorQueue(4, 3), unit(7, 3)
    assert set(queue.state_dict()) == {"anchors", "count"} and queue.anchors.shape == (4, 3)
    torch.testing.assert_close(queue.anchors.norm(dim=1), torch.ones(4))
    queue.enqueue(keys[:1])
    queue.enqueue(keys[1:])  # more than fit
    torch.testing.assert_close(queue.ordered(), keys[-4:])


def test_both_losses_have_one_value_and_one_gradient() -> None:
    queries, keys, anchors = unit(5, 3), unit(6, 3)[:5], unit(8, 3)
    labels = soft_labels(keys, anchors, 0.02)
    assert labels.shape == (5, 8)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(5))
    values, gradients = [], []
    for loss in (soft_label_loss, streaming_soft_label_loss):
        own = queries.clone().requires_grad_()
        values.append(loss(own, keys, anchors))
        gradients += torch.autograd.grad(values[-1], own)
    assert values[0].shape == ()
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_the_teacher_is_called_like_a_module_and_follows() -> None:
    student = nn.Linear(3, 2)
    teacher, images = EMATeacher(student), torch.randn(4, 3)
    torch.testing.assert_close(teacher(images), student(images).detach())
    before = student.weight.detach().clone()
    with torch.no_grad():
        student.weight += 1
    teacher.update(student)
    torch.testing.assert_close(teacher.module.weight, before + 0.01)


def test_forward_changes_nothing_and_update_moves_teacher_and_queue() -> None:
    method = ISD(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), queue_size=6)
    assert isinstance(method, Method) and isinstance(method, nn.Module)
    views = torch.rand(2, 3, 2, 2), torch.rand(2, 3, 2, 2)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    output = method(*views)
    assert output.loss.shape == () and output.keys is not None and output.keys.shape == (2, 3)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    output.loss.backward()
    with torch.no_grad():
        for weight in method.student.parameters():
            weight -= weight.grad
    method.update(output)
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("teacher.") for name in moved) and any(name.startswith("queue.") for name in moved)


def test_views_are_images_of_the_size_asked_for() -> None:
    images = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)
    made = Views(STRONG, 8)(images, torch.Generator().manual_seed(0))
    assert made.shape == (2, 3, 8, 8) and made.dtype == torch.float32 and 0 <= made.min() <= made.max() <= 1


def test_an_encoder_is_a_frozen_module_from_images_to_features() -> None:
    encoder = load_encoder(PACKAGE / "shipped" / "digits.safetensors")
    assert isinstance(encoder, nn.Module) and not any(p.requires_grad for p in encoder.parameters())
    features = encoder(torch.rand(2, 1, 16, 16))
    assert features.dtype == torch.float32 and features.ndim == 2 and len(features) == 2 and not encoder.training


def test_scores_are_numbers_between_0_and_1() -> None:
    features, labels = torch.cat([torch.randn(30, 4) + 9, torch.randn(30, 4) - 9]), torch.arange(60) // 30
    for score in (knn_accuracy, linear_accuracy):
        assert isinstance(found := score(features, labels, features, labels), float) and found == 1.0


# ---- numbers of other libraries

def given_as(values: torch.Tensor, kind: str) -> object:
    "The same numbers as other libraries have them."
    return values.numpy() if kind == "array" else values.tolist() if kind == "list" else values


def public_calls() -> dict[str, Callable[..., object]]:
    "What README and the lessons name, each on numbers that `give` hands over."
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=draw)
    floats, features, labels = pixels / 255, torch.randn(12, 5, generator=draw), torch.arange(12) % 4
    torch.manual_seed(0)
    unit, some = torch.nn.functional.normalize(features, dim=1), torch.arange(12) % 2
    net = Encoder(build_backbone(BackboneConfig("tiny", 3, width=4)), [0.5] * 3, [0.2] * 3).eval()
    layer, params = fit_linear(features, labels, epochs=1, min_steps=3), random_draw(STRONG, 6, 8, 8, draw)
    short = dict(epochs=1, min_steps=3)
    return {
        "Views": lambda give: Views(STRONG, 8)(give(pixels), torch.Generator().manual_seed(1)),
        "Views.apply": lambda give: Views(STRONG, 8).apply(give(floats), params),
        "augment": lambda give: augment(give(floats), params, 8),
        "channel_statistics": lambda give: channel_statistics(give(pixels)),
        "Encoder": lambda give: net(give(floats)),
        "Encoder.features": lambda give: net.features(give(floats)),
        "bytes": lambda give: net(give(pixels)),
        "EMATeacher": lambda give: EMATeacher(net)(give(floats)),
        "ISD": lambda give: ISD(net, queue_size=12)(give(floats), give(floats)).keys,
        "enqueue": lambda give: AnchorQueue(8, 5).enqueue(give(unit)),
        "soft_labels": lambda give: soft_labels(give(unit), give(unit)),
        "soft_label_loss": lambda give: soft_label_loss(give(unit), give(unit), give(unit)),
        "streaming": lambda give: streaming_soft_label_loss(give(unit), give(unit), give(unit)),
        "knn": lambda give: evaluation.knn_accuracy(give(features), give(labels), give(features), give(labels), k=2),
        "linear": lambda give: evaluation.linear_accuracy(
            give(features), give(labels), give(features), give(labels), **short),
        "few": lambda give: evaluation.few_label_accuracy(
            give(features), give(labels), give(features), give(labels), 0.5, **short).top1,
        "nearest": lambda give: evaluation.nearest(give(features), give(features), 2),
        "vote": lambda give: evaluation.vote(give(features.abs()), give(labels[None, :5].expand(12, 5).contiguous())),
        "layer": lambda give: layer(give(features)),
        "score": lambda give: evaluation.score(give(features), give(labels)).top1,
        "accuracy": lambda give: evaluation.accuracy_interval(give(some > 0)),
        "seeds": lambda give: evaluation.seed_interval(give(features[0])),
        "embed": lambda give: evaluation.embed(net, give(pixels)),
        "ImageSet": lambda give: ImageSet(give(pixels), give(labels[:6])).images,
        "effective_rank": lambda give: collapse.effective_rank(give(features)),
        "feature_spread": lambda give: collapse.feature_spread(give(features)),
        "uniformity": lambda give: collapse.uniformity(give(features)),
    }


REFUSED = {  # calls that take no such numbers: bytes must be uint8, and the parts of ISD take tensors alone
    *(("array", name) for name in ("bytes", "enqueue", "soft_labels", "soft_label_loss", "streaming")),
    *(("list", name) for name in ("Views", "channel_statistics", "bytes", "enqueue", "soft_labels", "soft_label_loss",
                                  "streaming", "embed", "ImageSet")),
}


@pytest.mark.parametrize("kind", ["array", "list"])
@pytest.mark.parametrize("name", public_calls())
def test_arrays_and_lists_are_taken_or_refused_in_a_sentence(name: str, kind: str) -> None:
    def found(kind: str) -> object:
        asked = public_calls()[name]  # made anew: a call may draw random numbers
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return asked(lambda values: given_as(values, kind))
    if (kind, name) in REFUSED:
        with pytest.raises(InputError, match="must be"):
            found(kind)
    else:
        torch.testing.assert_close(found(kind), found("tensor"), check_dtype=False)


# ---- the package as a whole

SERVERS = ("data", "views", "encoders", "queue", "loss", "teacher", "method", "training", "evaluation", "errors",
           "recipe", "kernels.nearest_neighbours", "engine.training")  # what a GPU server imports
ROOMS = {"kernels", "sources", "methods", "protocols", "engine", "studies", "explore", "cli"}


def test_the_package_opens_at_once() -> None:
    """In a fresh interpreter: the name of the package imports nothing of weight, a name from it does.

    Then what a GPU server imports, and what that must not need; the first room that imports it is named.
    """
    light = ("torch", "torchvision", "numpy", "jupyter")
    heavy = ("matplotlib", "umap", "IPython", "ipywidgets", "anywidget", "jupyterlab", "nbdev", "sklearn", "accelerate")
    code = f"""
import importlib, sys, isd_nb
print([name for name in {light + heavy!r} if name in sys.modules], len(dir(isd_nb)) > 10)
isd_nb.ISD
print('torch' in sys.modules)
for room in ("isd", *{SERVERS!r}):
    importlib.import_module("isd_nb." + room)
    if found := [name for name in {heavy!r} if name in sys.modules]:
        sys.exit(f"isd_nb.{{room}} imports {{', '.join(found)}}")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert said.stdout == "[] True\nTrue\n" and said.returncode == 0, said.stdout + said.stderr


def test_the_package_has_eight_rooms() -> None:
    rooms = {p.parent.name for p in PACKAGE.glob("*/*.py")}
    assert rooms == ROOMS and len(rooms) == 8
    assert {p.parent.name for p in PACKAGE.glob("*/*/**/*.py")} == set(), "a room has no rooms of its own"


def test_the_site_has_pictures_and_notebooks_beside_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PACKAGE.parent / "book")
    import build

    text = "![a](../../results/figures/a.png) [b](../../nbs/b.ipynb) [c](../../setup.py)"
    assert build.on_the_site(text) == "![a](results/figures/a.png) [b](nbs/b.ipynb) [c](../../setup.py)"


# ---- one meaning for a name

OPTIONS = {"command"}  # each command of `cli` has its own
TWICE = {  # what two modules define under one name, and why that is no trap
    "Supervised": "the option --supervised of isd_train, and the method that it adds",
    "answer": "a row of isd_eval, and what the explorer's page gets: neither is imported elsewhere",
    "answers": "the rows of a protocol, and those of a study: one verb for two tables",
    "at_least": "a rule of the choice of threads, and the lower bounds of settings: each stays in its module",
    "check_own": "of a run's images, and of a user's network: each stays in its module",
    "check_place": "of an export, and of a packed set: each stays in its module",
    "closing": "the last words of two commands",
    "columns": "of a table of features, which stays in its module, and of metrics.csv, for the engine alone",
    "columns_of": "what is written into an atlas, and what is read from a table of labels",
    "compute": "features of one process, and operations of a run: the second is a column of the table",
    "describe": "what the explorer's page gets, and the statistics of soft labels: lesson and page name them so",
    "digest": "of a gallery, and of packed images: both decide whether a cache is stale",
    "file_of": "of the answers of a run, and of a source: each stays in its module",
    "form": "the version of two file formats",
    "formats": "that Pillow reads, and that exports are written in",
    "from_torchvision": "a network, and a set: torchvision has both",
    "identity": "of a folder on a disk, and of a set of images: each what equals itself by another path",
    "kind_of": "of an entry of a folder, and of a `--data` argument",
    "labelled": "the score on some labels, and a list of files with labels from a table",
    "layouts": "of checkpoints, which lesson 3 of part 4 prints, and of maps, by training step",
    "ledger_of": "the file of answers of a run, and of a study",
    "measure": "each study has one, called by its module's name; the engine's makes a row of metrics.csv",
    "name_of": "of a source of features, and of an image in a figure: their arguments cannot be mistaken",
    "numbers": "of a text on the command line, and of a row of metrics.csv",
    "pack": "the command's images, and the explorer's arrays",
    "places_of": "of processes on a machine, and of files in a folder",
    "plan_of": "the order of fine-tuning, and a folder as every command reads it",
    "protocols": "names of `--protocol`, and the columns of a comparison with their titles",
    "put_together": "the parts of an attention kernel, and the parts of a file of features",
    "read_result": "of one run, and of a saved study: lessons use the second alone",
    "recipe_of": "of a run to be resumed, and of an encoder's file",
    "report": "the texts that two commands print",
    "size_of": "bytes of a file, and -1 for one that is gone where sets are compared",
    "split_names": "for people, from folders, and of torchvision's sets, where theirs are others",
    "train": "the second is the first with a recipe's name and images from a text, and is what `isd_nb.train` gives",
    "unreadable": "the refusals of a checkpoint, and of an image",
    "watch": "over companion processes, and over a study's training: each stays in its module",
    "width_of": "by a network's last layer, and by two grey images for a network whose layers are not known",
    "words": "a pattern for the keys of text towers, and what was found of a set",
}


def defined_in(path: Path) -> set[str]:
    "Names without an underscore that a module's own code defines at its top."
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def test_a_public_name_has_one_meaning() -> None:
    places = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent != PACKAGE or path.stem not in ("_modidx", "_moved"):
            for name in defined_in(path):
                places[name].append(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    twice = {name: where for name, where in places.items() if len(where) > 1}
    new = {name: where for name, where in twice.items() if name not in TWICE and name not in OPTIONS}
    assert not new, f"choose another name, or state here why two are no trap: {new}"
    assert not (TWICE.keys() | OPTIONS) - twice.keys(), "no longer in two modules"
    options = {name: [w for w in twice[name] if not w.startswith("cli.")] for name in OPTIONS}
    assert not {name: where for name, where in options.items() if where}


# ---- old places of names

OLD = {  # what code of an earlier version imports, by module: the names that are no longer defined there
    "baselines.moco_v2": "company own_rows",
    "building": "check_options",
    "cli": "BatchSize Change DataSpec Device DryRun Epochs Figures MethodName Out Processes RecipeName Resume Root "
           "Seed Steps Supervised Tracker Workers change_setting choose_recipe closing command companions "
           "draw_figures end_with_first figures_of final_scores finish free_port isd_train lost one_sentence "
           "places_of plan_in_words plot_curves process_count read_sets read_value recipe_of run run_directory "
           "scores_of share_of_cores start_companion table table_rows train_supervised watch what_was_run",
    "cli_eval": "Asked Count Encoders Ledger Question Seeds add_row answer answers as_saved check_numbers encoders_of "
                "file_of images_for labelled ledger_of line_of linear matching neighbours pick_device rows_file "
                "rows_of stoppable titles to_ask top tuned",
    "compare": "BatchSize Budget DataSpec Device Evaluations Jobs Names Out RecipeName Root Seeds Settings command "
               "differences every_method isd_compare listed number_of_images numbers passes report score",
    "comparison": "write_table",
    "data": "class_folders digits fit has_bfloat16 held_out_folders identity image_files kept_if_allowed kind_of "
            "load_images locked look_into nearest pick_held_out place read_files read_folder read_split refusal "
            "report_unreadable same_channels send spread suffixes upright walk",
    "encoders": "conv_bn small_resnet tiny torchvision_resnet",
    "evaluation": "check_images in_batches one_thread take_epoch",
    "explorer": "DataSpec HtmlFile LabOptions Limit Moments Opening Root RunFolder command draw_picture isd_explore "
                "open_lab pack produce sheet_columns sheets to_square write_notebook",
    "fine_tuning": "labelled_batches",
    "folders": "as_images read_indexed sort_tiny_imagenet",
    "fused": "attend_fused",
    "gallery": "Moment",
    "gpu_run": "Finished LiveCurves Together check_pixels draw features_of finish main_axes plot_rows "
               "read_sets_of_files read_stl10 sample_evaluator score_features train_or_go_on where",
    "isd": "FromRecipe WithTeacher average_over_processes call_apart similarities width_of",
    "loss": "attend attend_blocks check_looks wide",
    "low_precision": "attend_bfloat16",
    "neighbours": "popularity",
    "queue": "unit",
    "recipes": "are fitted need",
    "runs": "Saver Stopped cores load_checkpoint machine save_checkpoint stop_signals",
    "scale": "SumOverProcesses SyncBatchNorm centre sync_batch_norm",
    "sharing": "score_table",
    "teacher": "pure_call write_buffers",
    "training": "Diverged Log Plan Progress Rows Session agreed backward batches check_encoders check_losses "
                "check_tracker check_weights compiler count_seconds decoders due leave_signals look measure "
                "micro_batches prepare restore_session run_session save_session shard start_processes start_tracker "
                "synchronize",
    "views": "Draw add_noise_ apply_draw blur_reach blur_weights crop_boxes luma make_grey_ resample resize_weights "
             "rotate scale_brightness_ scale_contrast_ scale_saturation_ turn_hue_",
    "methods.foreign_names": "Layout",
    "methods.checkpoints": "find_layout",
    "engine.evaluate_source": "fingerprint",
    "sources.given": "name_of",
}


def place_in(said: str) -> object:
    "What lies at the place that a message names: `isd_nb.module.name`, or a module and `as name` behind it."
    found = re.findall(r"isd_nb\.[\w.]+", said)[-1]
    renamed = re.search(r", as (\w+)$", said)
    module, _, name = (f"{found}.{renamed[1]}" if renamed else found).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return importlib.import_module(found)


@pytest.mark.parametrize("place", OLD)
def test_a_name_that_has_moved_leads_to_its_new_place(place: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"isd_nb.{place}")
    for name in OLD[place].split():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = getattr(module, name)
            except ImportError as error:
                assert f"{name} is no longer in isd_nb.{place}: isd_nb." in str(error)
                place_in(str(error))
                continue
        said = [str(w.message) for w in caught if w.category is FutureWarning]
        assert said and said[0].startswith(f"{name} has moved"), f"{place}.{name}"
        new = place_in(said[0])
        assert (getattr(new, name) if inspect.ismodule(new) else new) is found, f"{place}.{name}"


def test_an_old_name_is_advised_from_the_module_that_defines_it() -> None:
    places = {old: today.rpartition(".") for old, today in NAMES.items()}
    files = {module: PACKAGE / f"{module.replace('.', '/')}.py" for module, _, _ in places.values()}
    defined = {module: defined_in(file) for module, file in files.items()}
    assert not {old: module for old, (module, _, name) in places.items() if name not in defined[module]}


@pytest.mark.filterwarnings("ignore:.*has moved")
def test_from_import_names_the_new_place_of_what_is_gone() -> None:
    with pytest.raises(ImportError, match=r"score is no longer in isd_nb\.compare: isd_nb\.protocols\.scorer"):
        exec("from isd_nb.compare import score")
    with pytest.raises(ImportError, match="cannot import name 'attent'"):
        exec("from isd_nb.loss import attent")


def test_the_code_of_the_page_about_your_own_loop_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (PACKAGE.parent / "book/pages/use_the_loss.md").read_text(), re.S)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 128))
    before = network[1].weight.detach().clone()
    names: dict[str, Any] = {"my_network": network, "batches": torch.rand(3, 2, 8, 3, 2, 2)}  # three batches, two views
    exec(code, names)
    assert names["loss"].isfinite() and int(names["queue"].count) == 3 * 8
    torch.testing.assert_close(names["queue"].ordered()[-8:], names["keys"])
    moved = [(net[1].weight - before).norm() for net in (network, names["teacher"].module)]
    assert moved[0] > moved[1] > 0, "the teacher follows"
