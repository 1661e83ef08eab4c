"""One command, several processes: the numbers of one, and nobody left behind however it ends."""
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import SMALL, TINY, call
from launching import QUICK, Forked
from isd_nb.cli.train import isd_train

OPTIONS = [*TINY, *SMALL, "--no-figures", "--no-supervised", "--set", "precision=float32",
           "--set", "batch_norm_splits=2"]
ENVIRONMENT = {**os.environ, "MPLBACKEND": "Agg", QUICK: "1"}
LONG = ["--steps", "5000", "--set", "evaluations=1"]  # a row every 50 steps; about a minute in all


def read(path: str) -> bytes:
    "A file of /proc, empty if its process has ended: it may do so at any moment, between a look and the next too."
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def start(folder: Path, *arguments: str, deep: bool = True) -> Forked:  # deep: the companion is a fork, too
    return Forked([sys.executable, "-m", "isd_nb.cli", *OPTIONS, *arguments], cwd=folder, env=ENVIRONMENT, text=True,
                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, deep=deep)


def companion(process: Forked, seconds: float = 60) -> int:
    "The process number of the only companion, once there is one."
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    if not Path(children).parent.is_dir():
        pytest.skip("child processes are found through /proc, which this system does not have")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        for child in read(children).decode().split():
            if b"ISD_NB_COMPANION" in read(f"/proc/{child}/environ") or read(f"/proc/{child}/comm") == b"companion\n":
                return int(child)
        time.sleep(0.02)
    raise AssertionError("no companion was started")


def wait_for_steps(run: Path, process: Forked, seconds: float = 120) -> None:
    "Until the first row after the start is written: all processes are at work."
    end = time.monotonic() + seconds
    while not (run / "metrics.csv").is_file() or len((run / "metrics.csv").read_text().splitlines()) < 3:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "no row was written"
        time.sleep(0.1)


def gone(number: int, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stat = read(f"/proc/{number}/stat")
        if not stat or stat.rpartition(b")")[2].split()[0] == b"Z":
            return True
        time.sleep(0.1)
    return False


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


@pytest.mark.usefixtures("small")
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    alone = call(isd_train, tmp_path, *OPTIONS, "--processes", "1", "--out", "run1")
    assert alone.returncode == 0, alone.stderr
    process = start(tmp_path, "--processes", "2", "--out", "run2")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    one, two = losses(tmp_path / "run1"), losses(tmp_path / "run2")
    assert len(one) == 12 and one == pytest.approx(two, rel=1e-3)
    assert (tmp_path / "run2" / "encoder.safetensors").is_file()


@pytest.mark.usefixtures("small")
def test_a_killed_command_leaves_no_process_behind(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, "--processes", "2", "--out", "run", deep=False)
    other = companion(process)
    wait_for_steps(tmp_path / "run", process)
    process.kill()
    process.wait()
    assert gone(other)


@pytest.mark.usefixtures("small")
def test_a_lost_companion_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, "--processes", "2", "--out", "run")
    other = companion(process)
    wait_for_steps(tmp_path / "run", process)
    os.kill(other, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "--resume" in errors and "Traceback" not in errors


@pytest.mark.usefixtures("small")
def test_a_signal_to_the_command_stops_and_saves(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, "--processes", "2", "--out", "run")
    other = companion(process)
    wait_for_steps(tmp_path / "run", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume" in errors
    assert gone(other) and list((tmp_path / "run" / "checkpoints").glob("state_*.pt"))


def test_bad_numbers_of_processes(tmp_path: Path) -> None:
    result = call(isd_train, tmp_path, *OPTIONS, "--processes", "3")
    assert result.returncode == 2 and "3 processes cannot share a batch" in result.stderr


def test_a_companion_that_is_done_ends_well() -> None:
    "While the first still scores and draws: an open pipe must not disturb the end of the interpreter."
    program = "import time; from isd_nb.engine.launch import end_with_first; end_with_first(); time.sleep(1)"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    assert process.wait(timeout=120) == 0
    process.stdin.close()
