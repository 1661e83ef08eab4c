"""Every public name is documented: a docstring, types, and an entry in the website's reference."""
import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "book"))
import reference  # noqa: E402

MODULES = reference.package_modules()


@cache
def all_names() -> dict[str, list[reference.Name]]:  # by module
    return {module: list(reference.names_of(path, module)) for module, path in MODULES.items()}


def test_every_public_name_has_an_entry() -> None:
    for module, names in all_names().items():
        assert sorted(name.name for name in names) == sorted(reference.public_names(MODULES[module])), module


def test_every_public_name_is_documented() -> None:
    own = [name for names in all_names().values() for name in names if not name.origin]
    mute = [f"{name.module}.{name.name}" for name in own if len(name.doc.split()) < 2]
    assert not mute, "a docstring; for a value, a comment beside it or above it"


def arguments(node: ast.FunctionDef) -> list[ast.arg]:
    "All arguments of a function but `self` and `cls`."
    a = node.args
    found = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(extra for extra in (a.vararg, a.kwarg) if extra)]
    return [arg for arg in found if arg.arg not in ("self", "cls")]


def public_functions() -> Iterator[tuple[str, ast.FunctionDef, bool]]:  # name, code, whether it belongs to a class
    "The public functions of all modules, and what their public classes can be called by."
    for module, names in all_names().items():
        wanted = {name.name for name in names if name.kind != "value" and not name.origin}
        for node in ast.parse(MODULES[module].read_text()).body:
            if getattr(node, "name", "") not in wanted:
                continue
            if isinstance(node, ast.FunctionDef):
                yield f"{module}.{node.name}", node, False
                continue
            for inner in node.body:
                called = isinstance(inner, ast.FunctionDef) and inner.name in ("__init__", "__call__")
                if called or (isinstance(inner, ast.FunctionDef) and inner.name[0] != "_"):
                    yield f"{module}.{node.name}.{inner.name}", inner, True


def test_public_functions_are_typed() -> None:
    loose = []
    for name, node, _ in public_functions():
        loose += [f"{name}({arg.arg})" for arg in arguments(node) if arg.annotation is None]
        loose += [f"{name} -> ?"] if node.returns is None else []
    assert not loose


def test_methods_of_public_classes_are_documented() -> None:
    "Those that PyTorch or `Method` calls are described by their comments on shapes."
    known = ("forward", "backward", "__init__", "__call__", "from_recipe")  # the last is described in `Method`
    mute = [name for name, node, inner in public_functions()
            if inner and node.name not in known and not ast.get_docstring(node)]
    assert not mute


def test_shapes_stand_beside_tensors() -> None:
    "A public function that takes or returns a tensor says somewhere in its head or docstring which shape it has."
    bare = []
    for name in (name for names in all_names().values() for name in names):
        if name.kind == "function" and re.search(r"(: |-> |\| )Tensor\b", name.source):
            comments = " ".join([*re.findall(r"# (.*)", name.source), name.doc])
            if not re.search(r"\([\w.]+(?:,| \*)[^()]*\)|any shape|numbers?\b|scalar", comments):
                bare.append(f"{name.module}.{name.name}")
    assert not bare


def test_the_names_of_your_code_are_those_of_readme() -> None:
    text = (ROOT / "README.md").read_text().partition("## Your code")[2].partition("\n## ")[0]
    lines = re.findall(r"^from isd_nb\.(\S+) import ([\w, ]+)", text, re.M)
    imported = {name.strip(): module for module, names in lines for name in names.split(",")}
    front = reference.front_names()
    assert imported and {name: front.get(name) for name in imported} == imported
    for name, module in front.items():
        assert name in [n.name for n in all_names()[module]]


def test_pages_of_the_reference(tmp_path: Path) -> None:
    modules = {name: MODULES[name] for name in ("loss", "queue", "kernels.keys", "encoders")}
    offered = dict(reference.front_names())
    names = reference.write_reference(tmp_path, {"nbs/1_isd/4_soft_labels": "Lesson 4"}, modules)
    page = (tmp_path / "loss.md").read_text()
    assert "## `soft_label_loss`" in page and "# (B, D) unit vectors" in page
    assert "Source and tests: [Lesson 4](/nbs/1_isd/4_soft_labels.ipynb)." in page
    elsewhere = (tmp_path / "queue.md").read_text()
    assert "Defined in [`isd_nb.kernels.keys`](#api-function-kernels-keys-gather-keys)" in elsewhere
    assert "Raises `InputError`." in (tmp_path / "encoders.md").read_text()
    assert names["soft_labels"].module == "loss"
    front = (tmp_path / "index.md").read_text()
    assert all(f"`{name}`" in front for name, module in offered.items() if module in modules)
