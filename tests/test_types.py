"""Types of the package; mypy.ini states how much is checked."""
import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import torch
from torch.utils.data import Dataset

import isd_nb

ROOT = Path(__file__).parent.parent

# What a user's code does with the names of `import isd_nb`; by the package's settings, so that mypy's cache serves.
SCRIPT = """
# mypy: disallow-untyped-calls, disallow-any-generics, warn-return-any, no-implicit-reexport, strict-equality
import isd_nb
from isd_nb import AnchorQueue, knn_accuracy, soft_labels

queue = AnchorQueue(64, 4)
reveal_type(queue)
reveal_type(isd_nb.ImageSet)
reveal_type(knn_accuracy)
soft_labels(queue.anchors, queue.ordered(), 0.02)
images = isd_nb.ImageSet([[[[1]]]], [0], ["a"], ["a.png"])
next(iter(images))
isd_nb.train("digits")
isd_nb.nothing_of_this_name
"""


def mypy(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "mypy", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_types_of_the_package() -> None:
    done = mypy()
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_script_of_a_user_has_types(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    lines = [line.partition("script.py:")[2] for line in mypy(str(tmp_path / "script.py")).stdout.splitlines()]
    expected = ("note: Revealed type is \"isd_nb.queue.AnchorQueue\"", "note: Revealed type is \"def (images: ",
                "note: Revealed type is \"def (train_features: ",
                "error: Missing positional arguments \"images\", \"out\" in call to \"train\"",
                "error: Module has no attribute \"nothing_of_this_name\"")
    assert len(lines) == len(expected) + 1, lines
    for line, said in zip(lines, expected):
        assert line.partition(": ")[2].startswith(said), line


def test_tensors_are_typed_as_tensors() -> None:
    "A buffer without an annotation may be a module, for a type checker that follows torch."
    assert {"anchors": torch.Tensor, "count": torch.Tensor}.items() <= get_type_hints(isd_nb.AnchorQueue).items()
    assert {"mean": torch.Tensor, "std": torch.Tensor}.items() <= get_type_hints(isd_nb.Encoder).items()


def test_an_image_set_is_typed_as_it_is_made() -> None:
    "Its stub for type checkers has the fields of the dataclass, and arrays, lists and texts beside tensors and paths."
    tree = ast.parse((ROOT / "isd_nb" / "data.py").read_text())
    made, = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    own = inspect.signature(isd_nb.ImageSet).parameters
    assert [a.arg for a in made.args.args] == ["self", *own] and len(made.args.defaults) == len(own) - 1
    assert [ast.literal_eval(d) for d in made.args.defaults] == [p.default for p in list(own.values())[1:]]
    assert isinstance(isd_nb.ImageSet(torch.zeros(1, 1, 2, 2).byte()), Dataset)


def test_type_checkers_see_every_public_name() -> None:
    seen: dict[str, str] = {}
    for node in ast.walk(ast.parse((ROOT / "isd_nb" / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level and node.module != "_moved":
            assert all(alias.asname == alias.name for alias in node.names), "`as` makes it public for a type checker"
            seen |= {alias.name: str(node.module) for alias in node.names}
    assert seen == isd_nb._PLACES
