"""The source distribution and the wheel: built, installed beside the environment's own dependencies, and used."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    "The output of a command that goes well."
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", **env},
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The wheel that the source distribution makes, installed in a folder of its own."
    place, build = (
        tmp_path_factory.mktemp("package"),
        "import setuptools.build_meta as b, sys; b.build_{}(sys.argv[1])",
    )
    files = subprocess.run(
        [
            "git",
            "ls-files",
            "-co",
            "--exclude-standard",
            "isd_nb",
            "*.in",
            "*.ini",
            "*.toml",
            "setup.py",
            "*.txt",
            "*.md",
            "LICENSE",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "source" / name).write_bytes((ROOT / name).read_bytes())
    run("-c", build.format("sdist"), place, cwd=place / "source")
    with tarfile.open(next(place.glob("*.tar.gz"))) as archive:
        archive.extractall(place / "unpacked", filter="data")
    run("-c", build.format("wheel"), place, cwd=next((place / "unpacked").iterdir()))
    run(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--no-index",
        "--target",
        place / "here",
        next(place.glob("*.whl")),
        cwd=place,
    )
    return place / "here"


def test_what_is_inside(installed: Path) -> None:
    assert (installed / "isd_nb" / "py.typed").is_file()
    assert {"explorer.js", "explorer.css"} <= {p.name for p in (installed / "isd_nb" / "explore" / "static").iterdir()}
    shipped = sorted((installed / "isd_nb" / "shipped").glob("*.safetensors"))
    assert shipped and all(p.with_suffix(kind).is_file() for p in shipped for kind in (".json", ".md"))
    source = {p.relative_to(ROOT) for p in (ROOT / "isd_nb").rglob("*.py")}
    assert {p.relative_to(installed) for p in (installed / "isd_nb").rglob("*.py")} == source


def test_your_code_of_readme_works_from_there(installed: Path) -> None:
    code = re.search(r"## Your code\n+```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code
    more = (
        "import isd_nb, torch; from pathlib import Path; print(Path(isd_nb.__file__).parent)\n"
        "from isd_nb.methods.checkpoints import open_source\n"
        "print(open_source('shipped:digits')(torch.zeros(2, 1, 16, 16)).shape[0])\n"
        "queue = AnchorQueue(4, 2); queue.enqueue(torch.eye(2)); print(int(queue.count))"
    )
    said = run("-c", code[1] + more, cwd=installed.parent, PYTHONPATH=str(installed), OMP_NUM_THREADS="1")
    assert said.split() == [str(installed / "isd_nb"), "2", "2"]
