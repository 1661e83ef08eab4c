"""Modules that have moved: importing one by its old name is an error that says where it is now."""
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

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


class MovedModules(MetaPathFinder):
    "Asked last, so only for modules that nobody else has found."

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        "Raise an `ImportError` for a module of this package that has moved."
        package, _, module = name.partition(".")
        if package == "isd_nb" and module in MOVED:
            raise ImportError(f"isd_nb.{module} has moved: import from isd_nb.{MOVED[module]}", name=name)
        return None
