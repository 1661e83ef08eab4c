"""Scripts in processes of their own, forked from one that has imported torch, which takes seconds."""
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from isd_nb.engine.launch import free_port

FORKED, FRESH = multiprocessing.get_context("forkserver"), multiprocessing.get_context("spawn")
FORKED.set_forkserver_preload(["isd_nb.engine.training", "accelerate", "sklearn.datasets", "torch._dynamo",
                               "torch.distributed.tensor"])
GRACE = 20  # seconds that the others get when a process has failed


def run_script(script: str, arguments: tuple[str, ...], environment: Mapping[str, str], errors: str) -> None:
    "What a process does: `python script arguments` in this environment, with its errors in a file."
    with open(os.devnull, "w") as nowhere, open(errors, "a") as log:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    np.random.seed()  # noqa: NPY002 (a fork has its parent's state; other code may draw from it)
    torch.set_num_threads(1)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


class Launched:
    "One script in one process, or in several that find each other as those of torchrun do."

    def __init__(self, script: Path, arguments: tuple[str, ...], processes: int = 1, fresh: bool = False):
        descriptor, log = tempfile.mkstemp(suffix=".log", dir=script.parent)
        os.close(descriptor)
        self.log, self.failed_at = Path(log), None
        shared = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
        if processes > 1:
            count = str(processes)
            shared |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(free_port())}
        ranks = [{"RANK": str(r), "LOCAL_RANK": str(r)} if processes > 1 else {} for r in range(processes)]
        kind = FRESH if fresh else FORKED
        self.processes = [kind.Process(target=run_script, args=(str(script), arguments, shared | rank, log))
                          for rank in ranks]
        for process in self.processes:
            process.start()

    @property
    def errors(self) -> str:
        return self.log.read_text()

    @property
    def returncode(self) -> int | None:
        "None while one is running, else of the first that failed. When one has failed, the others have 20 seconds."
        codes = [p.exitcode for p in self.processes]
        failed = next((code for code in codes if code), 0)
        if None not in codes:
            return failed
        if failed:
            self.failed_at = self.failed_at or time.monotonic()
            if time.monotonic() > self.failed_at + GRACE:
                self.kill()
        return None

    def send_signal(self, number: int) -> None:
        for process in self.processes:
            if process.is_alive():
                with suppress(ProcessLookupError):  # it has ended in between
                    os.kill(process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, seconds: float) -> int:
        end = time.monotonic() + seconds
        while (code := self.returncode) is None:
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"no end after {seconds} seconds: {self.errors[-2000:]}")
            time.sleep(0.01)
        return code


def finish(launched: Launched) -> None:
    assert launched.wait(240) == 0, launched.errors[-2000:]


def wait_for_checkpoint(run: Path, launched: Launched, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not list(run.glob("checkpoints/state_*.pt")):
        assert launched.returncode is None, launched.errors[-2000:]
        assert time.monotonic() < end, "no checkpoint came"
        time.sleep(0.02)
