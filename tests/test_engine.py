"""What only machines of others have: containers, many cores, several GPUs; and what the engine keeps from one use to the next."""
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from isd_nb.engine.launch import with_threads
from isd_nb.kernels.devices import limit_of_container
from launching import Launched, finish

GIB = 1 << 30


@pytest.mark.parametrize(
    ("stat", "free"),
    [
        (f"anon {4 * GIB}\nfile {28 * GIB}\ninactive_file {25 * GIB}\nactive_file {3 * GIB}\n", 28 * GIB),
        (f"anon {32 * GIB}\ninactive_file 0\nactive_file 0\n", 0),
        ("inactive_file", 0),  # not as Linux writes it
        (None, 0),
    ],
)
def test_files_in_memory_do_not_fill_a_container(tmp_path: Path, stat: str | None, free: int) -> None:
    for name in ("memory.max", "memory.current"):
        (tmp_path / name).write_text(f"{32 * GIB}\n")
    if stat is not None:
        (tmp_path / "memory.stat").write_text(stat)
    assert limit_of_container(tmp_path) == free
    (tmp_path / "memory.max").write_text("max\n")
    assert limit_of_container(tmp_path) == 1 << 62


MANY_CORES = """
import os, warnings
import psutil, torch
from isd_nb.engine.state import start_processes

del os.environ["OMP_NUM_THREADS"]
psutil.cpu_count = lambda logical=True: 64
torch.set_num_threads(3)
with warnings.catch_warnings(record=True) as noted:
    warnings.simplefilter("always")
    assert start_processes("cpu", None, None).num_processes == 2
assert torch.get_num_threads() == 3, torch.get_num_threads()
assert "OMP_NUM_THREADS" not in os.environ and not [w for w in noted if "OMP_NUM_THREADS" in str(w.message)]
"""


def test_processes_keep_their_share_of_threads(start: Callable[..., Launched], tmp_path: Path) -> None:
    (script := tmp_path / "many_cores.py").write_text(MANY_CORES)
    finish(start(script, processes=2))


def test_a_share_of_threads_is_of_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = torch.get_num_threads()
    monkeypatch.setattr("isd_nb.engine.launch.cores", lambda: 4)  # a container's quota, which PyTorch does not know
    try:
        for threads, processes, share in ((8, 1, 4), (8, 2, 2), (8, 8, 1), (2, 1, 2)):
            torch.set_num_threads(threads)
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
            with with_threads():
                assert torch.get_num_threads() == share
            with with_threads(7):
                assert torch.get_num_threads() == 7
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(usual)
