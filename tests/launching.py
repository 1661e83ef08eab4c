"""Scripts in processes of their own, forked from one that has imported torch, which takes seconds."""
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from isd_nb.cli import free_port

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["isd_nb.training", "accelerate", "sklearn.datasets", "torch._dynamo",
                               "torch.distributed.tensor"])


def run_script(script: str, arguments: tuple[str, ...], environment: dict[str, str], errors: str) -> None:
    "What a process does: `python script arguments`, with its errors in a file."
    with open(os.devnull, "w") as nowhere, open(errors, "a") as log:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


class Launched:
    "One script in one process, or in several that find each other as those of torchrun do; used like a `Popen`."

    def __init__(self, script: Path, arguments: tuple[str, ...], processes: int = 1):
        self.log = Path(tempfile.mkstemp(suffix=".log")[1])
        shared = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
        if processes > 1:
            count = str(processes)
            shared |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(free_port())}
        ranks = [{"RANK": str(r), "LOCAL_RANK": str(r)} if processes > 1 else {} for r in range(processes)]
        self.processes = [SERVER.Process(target=run_script, args=(str(script), arguments, shared | rank, str(self.log)),
                                         daemon=True) for rank in ranks]
        for process in self.processes:
            process.start()

    @property
    def errors(self) -> str:
        return self.log.read_text()

    @property
    def returncode(self) -> int | None:
        "Of the process that failed, if one did; None while one is running."
        codes = [p.exitcode for p in self.processes]
        return None if None in codes else next((code for code in codes if code), 0)

    def send_signal(self, number: int) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, seconds: float) -> int:
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
        if self.returncode is None:
            self.kill()
            raise AssertionError(f"no end after {seconds} seconds: {self.errors[-2000:]}")
        return self.returncode


def start(script: Path, *arguments: str, processes: int = 1) -> Launched:
    return Launched(script, arguments, processes)


def finish(launched: Launched) -> None:
    assert launched.wait(240) == 0, launched.errors[-2000:]


def wait_for_checkpoint(run: Path, launched: Launched, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not list(run.glob("checkpoints/state_*.pt")):
        assert launched.returncode is None, launched.errors[-2000:]
        assert time.monotonic() < end, "no checkpoint came"
        time.sleep(0.02)
