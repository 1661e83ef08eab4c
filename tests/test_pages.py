"""Every notebook runs from its first cell to its last, by nbdev's own function, several of them beside each other."""
import importlib.util
import io
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from launching import probe_quickly

ROOT = Path(__file__).parent.parent
# Those that take longest come first, so that none of them is begun when the others are done.
LONG = ("6_isd", "index", "4_from_pretrained_weights", "65_compare", "1_my_folder", "01_teacher_and_student",
        "02_soft_and_binary", "3_someone_elses_weights", "69_umap", "74_explorer", "45_fine_tuning", "2_encoders",
        "03_few_labels")
# They show how parts fit together; none checks the score of a linear layer, so it is trained for a moment.
QUICK = ("4_from_pretrained_weights", "1_my_folder", "2_my_network", "6_share", "61_evaluate_run", "63_in_python",
         "79_isd_train")
PAGES = sorted((p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts),
               key=lambda p: (LONG.index(p.stem) if p.stem in LONG else len(LONG), p))
# An error in notebooks, as in tests (pyproject.toml): a tensor handed to matplotlib where it computes with NumPy.
TENSORS = ",".join(f"error::DeprecationWarning:matplotlib.{part}" for part in ("cbook", "axes._axes", "transforms"))


def run(page: Path) -> str:  # what went wrong
    "One notebook, as `nbdev_test --path PAGE` runs it."
    from nbdev.config import get_config
    from nbdev.test import test_nb

    with redirect_stderr(io.StringIO()) as errors, pytest.MonkeyPatch.context() as patch:
        if page.stem in QUICK:
            probe_quickly(patch.setattr)
        passed, _ = test_nb(page, skip_flags=get_config().tst_flags.split(), basepath=ROOT)
    return "" if passed else errors.getvalue() or "no error was printed"


def leave_no_semaphore() -> None:
    "A lock of this process alone for progress bars: theirs would outlive a process that ends at once."
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


class Kernel:
    "A process for notebooks alone, begun as nbdev's are: those of a worker run in it one after the other."

    def __init__(self) -> None:
        import torch

        usual = {"MPLBACKEND": "Agg", "PYTHONWARNINGS": TENSORS, "NUMBA_NUM_THREADS": "1"}
        interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}  # before anything imports Triton
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (usual | interpreted).items():
                patch.setenv(name, value)
            self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), leave_no_semaphore)
            self.pool.submit(os.getpid).result()  # it has started

    def end(self) -> None:
        "At once: to take apart what fifty notebooks have left behind takes a minute."
        self.pool.submit(os._exit, 0).exception()
        self.pool.shutdown()


@pytest.fixture(scope="module")
def kernels() -> Iterator[list[Kernel]]:
    "The process of this worker; another takes its place where one ends."
    used = [Kernel()]
    yield used
    used[-1].end()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_a_notebook_runs(page: Path, kernels: list[Kernel]) -> None:
    if page.stem == "04_triton_attention" and importlib.util.find_spec("triton") is None:
        pytest.skip("PyTorch for macOS and PyTorch without CUDA come without Triton")
    try:
        errors = kernels[-1].pool.submit(run, page).result()
    except BrokenProcessPool:
        kernels.append(Kernel())  # for the notebooks that follow
        errors = "its process ended: memory, or a fault of compiled code"
    assert not errors, errors
