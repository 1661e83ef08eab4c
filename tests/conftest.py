"""What the tests share: commands run as a user would, and small image folders."""
import io
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isd_nb.cli.train import isd_train as train_command
from launching import Launched, probe_quickly

# What a launcher or a queue has set for a process of its own is not for those that tests start.
FOREIGN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
for variable in [name for name in os.environ if name in FOREIGN or name.startswith("SLURM_")]:
    del os.environ[variable]
# One thread here and in what tests start, as in `make test`: runs are the same bit for bit at one number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
TINY = ["--steps", "12", "--batch-size", "16", "--set", "queue_size=32", "--set", "width=4", "--set", "evaluations=3",
        "--set", "projector=[8]", "--set", "predictor=[8]", "--device", "cpu"]
SMALL = ["--recipe", "digits", "--data", "folder:small"]  # images of the fixture `small`, made in a moment


# The files that take longest, so that no worker begins one of them when the others have nothing left.
LONG = (
    "test_pages", "test_browser", "test_training_scale", "test_processes", "test_gpu_notebooks", "test_checkpoints",
    "test_networks", "test_day_that_goes_wrong", "test_companions", "test_command_line", "test_compare",
    "test_odd_runs", "test_methods",
    "test_benchmarks", "test_evaluation", "test_site", "test_isd_eval", "test_wrong_settings",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file stay in one worker, for what they share. Notebooks, which compute all the time, go to all
    workers but one: it has tests meanwhile, many of which wait."""
    from xdist.scheduler import LoadScopeScheduling

    if config.option.dist != "load":  # another way was asked for
        return None
    lanes, lane_of = max(1, len(config.option.tx) - 1), dict[str, int]()

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if not file.endswith("test_pages.py"):
                return file
            return f"{file} {lane_of.setdefault(nodeid, len(lane_of) % lanes)}"
    return ByFile(config, log)


def call(command: Callable[[], None], place: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    "Runs a console command in the folder `place`, in this process: a new one takes seconds to import torch."
    out, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
        patch.chdir(place)
        patch.setattr("sys.argv", [command.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command()
    return subprocess.CompletedProcess(arguments, ended.value.code or 0, out.getvalue(), errors.getvalue())


@contextmanager
def full_disk() -> Iterator[Callable[[], None]]:
    "From the call of what this gives until the end of the block, no file of this process can grow."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session", autouse=True)
def quick_linear_layers() -> Iterator[None]:
    "Those of scores are trained for a moment, unless a test asks for steps: `fit_linear` itself is as it is."
    with pytest.MonkeyPatch.context() as patch:
        probe_quickly(patch.setattr)
        yield


@pytest.fixture
def isd_train(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    "Runs `isd_train` in an empty directory."
    return lambda *arguments: call(train_command, tmp_path, *arguments, *TINY, "--processes", "1")


@pytest.fixture
def make_module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    "Makes a module of the user's, which can be imported while the test runs."
    def make(name: str, **members: object) -> ModuleType:
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
        return module
    return make


@pytest.fixture
def start() -> Iterator[Callable[..., Launched]]:
    "Starts a script, in one process or several; none of them outlives the test."
    started: list[Launched] = []

    def begin(script: Path, *arguments: str, processes: int = 1, fresh: bool = False) -> Launched:
        started.append(Launched(script, arguments, processes, fresh))
        return started[-1]
    yield begin
    for launched in started:
        launched.kill()
        launched.wait(30)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    "Writes random images as `NAME/<class>/NN.png`."
    def make(name: str, classes: dict[str, int], size: int = 20) -> Path:
        rng = np.random.default_rng(0)
        for label, count in classes.items():
            folder = tmp_path / name / label
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size, size + i % 3, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:03}.png")
        return tmp_path / name
    return make


@pytest.fixture
def small(make_folder: Callable[..., Path]) -> Path:
    "Eighty images to train on and twenty to test, in two classes, in the folder `small` of `tmp_path`."
    make_folder("small/train", {"a": 40, "b": 40})
    return make_folder("small/test", {"a": 10, "b": 10}).parent
