"""Modules that have moved: their old names still work for one release, with a warning that says where they are now."""
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
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


NAMES = {  # by their old place
    "data.class_folders": "sources.folders",
    "data.digits": "sources.digits",
    "data.load_images": "sources.door",
    "data.locked": "errors",
    "data.read_folder": "sources.layout",
}


def moved_name(module: str, name: str) -> Any:
    "What has moved out of a module, from where it is now."
    old = f"{module.removeprefix('isd_nb.')}.{name}"
    if old not in NAMES:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    today = f"isd_nb.{NAMES[old]}"
    warnings.warn(f"{name} has moved and goes from {module} with the next release: import it from {today}", FutureWarning, stacklevel=3)
    return getattr(import_module(today), name)


class MovedModules(MetaPathFinder, Loader):
    "Asked first: the old name of a module inside a package that has moved must not load its file a second time."

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        "A module of this package that has moved, by its old name."
        package, _, module = name.partition(".")
        return ModuleSpec(name, self) if package == "isd_nb" and module in MOVED else None

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
