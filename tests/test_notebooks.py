"""Notebooks and package agree; notebooks are clean, executed, and of a size that can be read."""
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A copy of the project after `nbdev_export` and `nbdev_clean`."
    copy = tmp_path_factory.mktemp("fresh")
    for name in ("nbs", "isd_nb"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([str(Path(sys.executable).with_name(command))], cwd=copy, check=True, timeout=120)
    return copy


def test_package_is_what_the_notebooks_export(fresh: Path) -> None:
    names = {p.relative_to(fresh) for p in (fresh / "isd_nb").rglob("*.py")}
    assert names == {p.relative_to(ROOT) for p in (ROOT / "isd_nb").rglob("*.py")}
    different = [str(n) for n in sorted(names) if (fresh / n).read_text() != (ROOT / n).read_text()]
    assert not different, f"run nbdev_export; it changes {different}"


def test_notebooks_are_clean(fresh: Path) -> None:
    names = [p.relative_to(ROOT) for p in NOTEBOOKS]
    different = [str(n) for n in names if (fresh / n).read_text() != (ROOT / n).read_text()]
    assert not different, f"run nbdev_clean; it changes {different}"


INSTALL = """\
# Where isd_nb is missing, this installs it from the clone that the notebook lies in (other ways: book/pages/install.md)
from importlib.util import find_spec
if find_spec("isd_nb") is None:
    get_ipython().run_line_magic("pip", 'install --quiet "{root}[explore]"')"""


def test_the_first_cell_installs_the_package_where_it_is_missing() -> None:
    for path in NOTEBOOKS:
        first = next(c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code")
        root = "/".join([".."] * len(path.relative_to(ROOT).parts[:-1]))
        assert (path.parent / root).resolve() == ROOT
        assert "".join(first["source"]) == INSTALL.format(root=root), path.name
        assert first["metadata"]["tags"] == ["install"] and not first["outputs"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_chapter_can_be_read(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    code = [c for c in cells if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    outputs = [o for c in code for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    pictures = [len(data) * 3 // 4 for o in outputs for kind, data in o.get("data", {}).items() if kind == "image/png"]
    assert max(pictures, default=0) < 110_000, "a figure of more than about 100 KB"
    drawing = [c for c in code if "\nplt.show()" in "".join(c["source"])]  # not those that wait for a saved result
    shown = [c for c in drawing if any("image/png" in o.get("data", {}) for o in c["outputs"])]
    assert len(shown) == len(drawing) and (outputs or not code), "run it before committing: figures are missing"
    lines = [len("".join(c["source"]).splitlines()) for c in code]
    assert statistics.median(lines) <= 15 and len(cells) <= 70
