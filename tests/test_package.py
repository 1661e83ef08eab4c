"""The source distribution and the wheel: built, installed beside the environment's own dependencies, and used.

Commands, imports and environments are those that it declares.
"""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
from configparser import ConfigParser, SectionProxy
from importlib import import_module
from pathlib import Path

import pytest
from conftest import call
from typer import Typer
from typer.main import get_command

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
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone: git does not tell what belongs to it")
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
        archive.extractall(place / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
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


def test_links_of_the_description_lead_to_the_repository(installed: Path) -> None:
    text = next(installed.glob("*.dist-info/METADATA")).read_text(encoding="utf-8")
    places = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(places) > 20 and all(place.startswith(("https://", "#")) for place in places)
    assert "](https://github.com/isd-nb/isd_nb/raw/main/results/figures/learning.png)" in text
    assert "](https://github.com/isd-nb/isd_nb/blob/main/nbs/index.ipynb)" in text


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


def settings() -> SectionProxy:
    "What the package states about itself."
    read = ConfigParser(delimiters=["="])
    read.read(ROOT / "settings.ini")
    return read["DEFAULT"]


def commands() -> dict[str, str]:
    "The commands of the package, and where they are."
    return dict(entry.split("=") for entry in settings()["console_scripts"].split())


@pytest.mark.parametrize("name", commands())
def test_every_command_starts_as_the_others_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, _, function = commands()[name].partition(":")
    module, started = import_module(place), []
    monkeypatch.setattr(module, "console", started.append)
    getattr(module, function)()
    assert started == [module.command]


@pytest.mark.parametrize("name", commands())
def test_every_command_explains_itself(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, _, function = commands()[name].partition(":")
    module = import_module(place)
    monkeypatch.setenv("COLUMNS", "400")  # no line is folded, no word cut off
    said = call(getattr(module, function), tmp_path, "--help")
    assert said.returncode == 0 and not said.stderr
    assert f"{name} [OPTIONS]" in said.stdout and module.command.__doc__ in said.stdout
    app = Typer(add_completion=False)
    app.command()(module.command)
    taken = get_command(app).params
    assert taken and all(p.help in said.stdout for p in taken)
    assert all(max(p.opts, key=len) in said.stdout for p in taken if p.param_type_name == "option")


LIBRARIES = dict(PIL="pillow", sklearn="scikit-learn", umap="umap-learn", faiss="faiss-cpu", IPython="ipython")
WITH_TORCH = {"triton"}  # comes with PyTorch where it works; without it the code takes another way


def imported(folder: str) -> dict[str, str]:
    "The libraries that the code of a folder imports, each with a file that does."
    found, own = dict[str, str](), {path.stem for part in (folder, "tests") for path in (ROOT / part).rglob("*.py")}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            tops = {name.partition(".")[0] for name in names} - {"isd_nb"} - sys.stdlib_module_names - WITH_TORCH
            found |= {LIBRARIES.get(name, name): path.name for name in tops if folder == "isd_nb" or name not in own}
    return found


@pytest.mark.parametrize(("folder", "extras"), [
    ("isd_nb", "explore timm parquet hub dicom onnx"), ("benchmarks", "bench dev")])
def test_what_the_code_imports_is_declared(folder: str, extras: str) -> None:
    lists = ("requirements", *(f"{extra}_requirements" for extra in extras.split()))
    wanted = " ".join(settings()[name] for name in lists)
    bounds = dict(re.match(r"([\w.-]+)(.*)", entry).groups() for entry in wanted.split())
    assert not {name: file for name, file in imported(folder).items() if name not in bounds}
    assert all(bound for bound in bounds.values())  # each has a lower bound


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_every_python_has_an_environment_of_its_own() -> None:
    for python in ("python3", "python3.12", "/opt/bin/python3.13"):
        venv = ".venv" if python == "python3" else f".venv-{Path(python).name}"
        call = ["make", "-n", "-B", "book", f"PYTHON={python}"]
        said = subprocess.run(call, cwd=ROOT, capture_output=True, text=True).stdout
        assert f"{python} -m venv {venv}\n" in said and f"{venv}/bin/python book/build.py" in said, said
    for target, script in (("slides", "course/slides.py"), ("handouts", "course/handouts.py"), ("dist", "-m build"),
                           ("coverage", "tests/measure_coverage.py")):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and f".venv/bin/python {script}" in done.stdout, done.stdout + done.stderr
        assert script.startswith("-m") or (ROOT / script).is_file()
    tested = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert all(f'"3.{minor}"' in tested for minor in (10, 11, 12, 13))
