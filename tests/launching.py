"""Scripts in processes of their own, forked from one that has imported torch, which takes seconds."""
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import torch

from isd_nb import evaluation
from isd_nb.engine.launch import free_port
from isd_nb.kernels.linear_classifier import LinearClassifier, fit_linear

FORKED, FRESH = multiprocessing.get_context("forkserver"), multiprocessing.get_context("spawn")
FORKED.set_forkserver_preload(["isd_nb.engine.training", "isd_nb.cli.train", "accelerate", "torch._dynamo",
                               "torch.distributed.tensor", "sklearn.datasets"])  # the last: three seconds of `digits`
QUICK = "ISD_NB_TEST_QUICK_PROBES"  # in the environment of a fork: linear layers are trained for a moment there
GRACE = 20  # seconds that the others get when a process has failed


def settle(environment: Mapping[str, str], argv: Sequence[str], paths: Sequence[str], threads: int = 1) -> None:
    "Gives a fork what a process of its own begins with; `paths` are the first where modules lie."
    os.environ.clear()
    os.environ.update(environment)
    np.random.seed()  # noqa: NPY002 (a fork has its parent's state; other code may draw from it)
    torch.set_num_threads(threads)
    sys.argv = list(argv)
    sys.path[:0] = paths


def run_script(script: str, arguments: tuple[str, ...], environment: Mapping[str, str], errors: str) -> None:
    "What a process does: `python script arguments` in this environment, with its errors in a file."
    with open(os.devnull, "w") as nowhere, open(errors, "a") as log:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(log.fileno(), 2)
    settle(environment, [script, *arguments], [str(Path(script).parent)])
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


def probe_quickly(patch: Callable[[object, str, object], None] = setattr) -> None:
    "Trains linear layers for a moment where no steps are asked for: a test that leaves it at 2,000 is not about them."
    def quick(*given: Any, **how: Any) -> LinearClassifier:
        usual = how.get("min_steps", 2000) == 2000
        return fit_linear(*given, **how | ({"epochs": 2, "min_steps": 2} if usual else {}))
    patch(evaluation, "fit_linear", quick)


def become(command: list[str], folder: str, environment: Mapping[str, str], streams: Sequence[Connection],
           not_mine: Sequence[IO], session: bool, deep: bool) -> None:
    "What `python command` does, in a fork: `-m MODULE ...`, `-c CODE ...` or `FILE ...`."
    for file in not_mine:
        file.close()
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
    letters = environment.get("PYTHONIOENCODING")
    sys.stdin, sys.stdout, sys.stderr = (open(n, "w" if n else "r", 1, letters, closefd=False)  # noqa: SIM115
                                         for n in range(3))
    if session:
        os.setsid()
    os.chdir(folder)
    kind, *rest = command
    paths = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    settle(environment, command if kind not in ("-m", "-c") else ["-c" if kind == "-c" else rest[0], *rest[1:]],
           [str(Path(kind).parent) if kind not in ("-m", "-c") else folder, *paths],
           int(environment.get("OMP_NUM_THREADS", 1)))
    if "ISD_NB_COMPANION" in environment:
        with suppress(OSError):  # where there is no /proc, companions are not found by name
            Path("/proc/self/comm").write_text("companion")  # a fork's variables cannot be seen from outside
    if deep:
        from isd_nb.engine import launch
        launch.subprocess = forking("fork")
    if QUICK in environment:
        probe_quickly()
    if kind == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(kind, run_name="__main__")


class Forked:
    """Stands for `subprocess.Popen([sys.executable, ...])`, without the seconds that an import of torch takes.

    `deep`: the companions that a command starts are forks of it, too.
    """
    kind = "forkserver"

    def __init__(self, command: Sequence[str | Path], stdin: Any = None, stdout: Any = None, stderr: Any = None,
                 env: Mapping[str, str] | None = None, cwd: Path | str | None = None, text: bool = False,
                 start_new_session: bool = False, deep: bool = False):
        def end(given: Any, number: int) -> tuple[int, IO | None]:
            if given == subprocess.PIPE:
                read, write = os.pipe()
                kept, mode = (write, "w") if number == 0 else (read, "r")
                return (read if number == 0 else write), open(kept, mode + ("" if text else "b"))
            if given == subprocess.DEVNULL:
                return os.open(os.devnull, os.O_RDWR), None
            return os.dup(number if given is None else given if isinstance(given, int) else given.fileno()), None
        ends = [end(given, number) for number, given in enumerate((stdin, stdout, stderr))]
        self.stdin, self.stdout, self.stderr = (file for _, file in ends)
        streams, kept = [Connection(number) for number, _ in ends], [file for _, file in ends if file]
        context = FORKED if self.kind == "forkserver" else multiprocessing.get_context("fork")
        told = dict(folder=str(cwd or os.getcwd()), environment=dict(os.environ if env is None else env),
                    streams=streams, not_mine=kept if self.kind == "fork" else (), session=start_new_session, deep=deep)
        self.process = context.Process(target=become, args=([str(word) for word in command[1:]],), kwargs=told)
        self.process.start()
        for stream in streams:
            stream.close()
        self.pid, self.args = self.process.pid, command

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        texts: dict[IO, Any] = {}
        files = [file for file in (self.stdout, self.stderr) if file]
        readers = [threading.Thread(target=lambda file=file: texts.update({file: file.read()}), daemon=True)
                   for file in files]
        for reader in readers:
            reader.start()
        if self.stdin:
            self.stdin.write(input or "")
            self.stdin.close()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return texts.get(self.stdout), texts.get(self.stderr)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedHere(Forked):
    "A fork of this process itself, which must not have computed anything yet."
    kind = "fork"


def forking(kind: str = "forkserver") -> Any:
    "Stands for the module `subprocess` where one of ours starts Python."
    return SimpleNamespace(**{**vars(subprocess), "Popen": Forked if kind == "forkserver" else ForkedHere})


def run_forked(command: Sequence[str | Path], timeout: float = 300, **how: Any) -> subprocess.CompletedProcess:
    "`subprocess.run` of `Forked`, with what was printed as text."
    pipe = subprocess.PIPE
    process = Forked(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, **how)
    try:
        printed = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, *printed)
