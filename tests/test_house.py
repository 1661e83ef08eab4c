"""The package is a house: arrows between its rooms point one way, and no room is too large."""
import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "isd_nb"
SPINE = ("data", "views", "encoders", "queue", "loss", "teacher", "method", "isd", "embedding", "evaluation")
FLOORS = (("errors",), ("kernels",), SPINE, ("sources",), ("recipe",), ("methods",), ("protocols",), ("engine",),
          ("studies", "explore"), ("cli",))
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FRONTS = {"", "__init__", "_modidx", "_moved", "training"}  # `training` is a front for code of earlier versions


def module_name(path: Path) -> str:
    "`isd_nb/engine/runs.py` -> `engine.runs`."
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(p): p for p in PACKAGE.rglob("*.py") if module_name(p).split(".")[0] not in FRONTS}


@cache
def imports_of(module: str) -> set[str]:
    "The modules of the package that a module imports, anywhere in its code."
    found, package = set(), module.split(".")[:-1] if MODULES[module].name != "__init__.py" else module.split(".")
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            start = package[:len(package) - node.level + 1] if node.level else []
            parts = [*start, *(node.module or "").split(".")] if node.level else (node.module or "").split(".")
            if not node.level and parts[0] != "isd_nb":
                continue
            name = ".".join(p for p in (parts if node.level else parts[1:]) if p)
            for alias in node.names:
                inner = f"{name}.{alias.name}".strip(".")
                found.add(inner if inner in MODULES else name)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("isd_nb.") for a in node.names if a.name.startswith("isd_nb.")}
    return {name for name in found if name in MODULES and name != module}


# Imported by name when used: `load_encoder` takes every source, and the readers of foreign files build networks. These
# arrows point up; importing the modules does not follow them. A registry would not do: the readers would be there
# only after an import of isd_nb.methods.checkpoints, so that what `load_encoder` reads would hang on what else is used.
# `ImageSet.from_dataset` reads data sets of PyTorch in the same way, and `ImageSet.from_folder` folders.
LATE = {("encoders", "methods.checkpoints"), ("data", "sources.datasets"), ("data", "sources.door")}


def late_imports_of(module: str) -> set[str]:
    "The modules of the package that a module hands to `import_module` as a text."
    calls = [n for n in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(n, ast.Call)]
    named = {a.value for n in calls if getattr(n.func, "attr", getattr(n.func, "id", "")) == "import_module"
             for a in n.args if isinstance(a, ast.Constant)}
    return {name.removeprefix("isd_nb.") for name in named if name.startswith("isd_nb.")}


def test_what_is_imported_when_it_is_used() -> None:
    assert {(module, name) for module in MODULES for name in late_imports_of(module)} == LATE


def test_contributing_names_what_is_written_by_hand() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| to do |")[0]
    by_hand = [p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if "utogenerated" not in p.read_text().lower()]
    by_hand = {path.as_posix() for path in by_hand if path.name != "__init__.py"} | {"isd_nb/__init__.py"}
    assert {name for name in by_hand if f"`{name}`" not in text} == set() and len(by_hand) >= 4


def test_every_room_has_its_floor() -> None:
    assert {module.split(".")[0] for module in MODULES} == set(FLOOR)
    assert len(FLOOR) <= 20


@pytest.mark.parametrize("module", sorted(MODULES))
def test_arrows_point_down(module: str) -> None:
    floor = FLOOR[module.split(".")[0]]
    upward = sorted(name for name in imports_of(module) if FLOOR[name.split(".")[0]] > floor)
    assert not upward, f"{module} imports from floors above it: {upward}"


def test_no_circle() -> None:
    waiting = {module: imports_of(module) for module in MODULES}
    while free := [module for module, needs in waiting.items() if not needs & waiting.keys()]:
        for module in free:
            del waiting[module]
    assert not waiting, f"these import each other: {sorted(waiting)}"


def test_rooms_of_one_floor_do_not_import_each_other() -> None:
    for one, other in (("studies", "explore"), ("explore", "studies")):
        members = [m for m in MODULES if m.split(".")[0] == one]
        crossing = [m for m in members if any(n.split(".")[0] == other for n in imports_of(m))]
        assert not crossing, f"{crossing} import {other}"


def test_no_module_is_too_long() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert not {module: length for module, length in lengths.items() if length > 400}
