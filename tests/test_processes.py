"""Two processes, and processes that are killed: every run ends as the undisturbed one."""
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from launching import Launched, finish

Start = Callable[..., Launched]
SCRIPT = '''
import os
import signal
import sys
from dataclasses import replace
from isd_nb.sources.digits import digits
from isd_nb.engine import state, training
from isd_nb.protocols.storage import Stopped
from isd_nb.recipe import find_recipe
build = state.build_method
if {double}:
    state.build_method = lambda *given: build(*given).double()
recipe = replace(find_recipe("digits"), steps={steps}, batch_size=16, queue_size=40, width=4,
                 projector=(8,), predictor=(8,),
                 evaluations=1, precision="float32", learning_rate=0.03, batch_norm_splits={splits},
                 batch_norm={batch_norm!r})
images = digits()[0].subset(range(100))
step = training.train_step
def until_asked(state, *given):
    if f"--stop={{state.step}}" in sys.argv:
        os.kill(os.getpid(), signal.SIGINT if "--interrupt" in sys.argv else signal.SIGTERM)
    return step(state, *given)
training.train_step = until_asked
try:
    trained = training.train(recipe, images, sys.argv[1], resume="--resume" in sys.argv, device="cpu",
                             save_every={save_every}, show=False)
except Stopped:
    sys.exit(130)
'''


def newest(run: Path) -> dict:
    return torch.load(max((run / "checkpoints").glob("state_*.pt")), weights_only=True)


def newest_step(run: Path) -> int:
    "By the file's name: a process that trains may remove the file."
    return max(int(path.stem.removeprefix("state_")) for path in run.glob("checkpoints/state_*.pt"))


def write_script(path: Path, steps: int = 12, splits: int = 1, save_every: float = 60, double: bool = False,
                 batch_norm: str = "local") -> Path:
    path.write_text(SCRIPT.format(steps=steps, splits=splits, save_every=save_every, double=double,
                                  batch_norm=batch_norm))
    return path


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_do_what_one_does(start: Start, tmp_path: Path, processes: int) -> None:
    "Halves of a batch in two processes: the queue, the weights and the losses of one process, in double precision."
    one = write_script(tmp_path / "one.py", splits=processes, double=True)  # batch norm in as many parts as processes
    many = write_script(tmp_path / "many.py", double=True)
    finish(start(one, str(tmp_path / "alone")))
    finish(start(many, str(tmp_path / "together"), processes=processes))
    alone, together = newest(tmp_path / "alone"), newest(tmp_path / "together")
    assert alone["step"] == together["step"] == 12
    torch.testing.assert_close(together["method"], alone["method"], rtol=1e-6, atol=1e-8)
    a, b = ((tmp_path / name / "metrics.csv").read_text().splitlines()[1:] for name in ("alone", "together"))
    losses = [[float(line.split(",")[2] or 0) for line in rows] for rows in (a, b)]
    assert len(losses[0]) == 13 and losses[0][1] > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_resume_with_another_number_of_processes(start: Start, tmp_path: Path) -> None:
    "Two processes begin and one goes on: the queue and the weights of one that did it all, in double precision."
    script = write_script(tmp_path / "train.py", double=True, batch_norm="sync")
    assert start(script, str(tmp_path / "run"), "--stop=4", processes=2).wait(240) == 130
    assert newest_step(tmp_path / "run") == 5
    finish(start(script, str(tmp_path / "run"), "--resume"))
    finish(start(script, str(tmp_path / "straight")))
    resumed, straight = newest(tmp_path / "run"), newest(tmp_path / "straight")
    assert resumed["step"] == straight["step"] == 12
    torch.testing.assert_close(resumed["method"], straight["method"], rtol=1e-6, atol=1e-8)


KILLED = '''
import os, signal, sys, time
from isd_nb.engine import training
save, saved, here = training.save_train_state, [], os.getpid()

def save_and_be_killed(*given):
    saved.append(save(*given))
    if len(saved) == 2 and not os.fork():  # a process of its own kills at any moment, also while this one computes
        time.sleep(float(sys.argv[-1]))
        os.kill(here, signal.SIGKILL)
        os._exit(0)
    if len(saved) == 12:
        time.sleep(600)  # the run must not end before that

training.save_train_state = save_and_be_killed
'''


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict:
    "How 40 steps end that nothing stops."
    place = tmp_path_factory.mktemp("straight")
    finish(Launched(write_script(place / "train.py", steps=40), (str(place / "run"),)))
    return newest(place / "run")


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_exact_resume_after_a_signal(start: Start, straight: dict, tmp_path: Path, stop: int) -> None:
    script = write_script(tmp_path / "train.py", steps=40)
    how = ("--interrupt",) if stop == signal.SIGINT else ()
    process = start(script, str(tmp_path / "stopped"), "--stop=19", *how)
    assert process.wait(240) == 130, process.errors[-2000:]
    assert newest_step(tmp_path / "stopped") == 20
    fresh = stop == signal.SIGINT  # a new interpreter has another order of hashes
    finish(start(script, str(tmp_path / "stopped"), "--resume", fresh=fresh))
    same(straight, newest(tmp_path / "stopped"))


def same(a: dict, b: dict) -> None:
    "Bit for bit."
    for part in ("method", "optimizer"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)


def test_kills_at_random_moments(start: Start, tmp_path: Path) -> None:
    "SIGKILL while training and saving (every step saves): the run goes on, and ends bit for bit the same."
    count = int(os.environ.get("ISD_NB_KILLS", 2))
    script = write_script(tmp_path / "train.py", steps=12 * count + 6, save_every=0)
    (tmp_path / "killed.py").write_text(KILLED + script.read_text())
    finish(start(write_script(tmp_path / "plain.py", steps=12 * count + 6), str(tmp_path / "straight")))
    rng, run = random.Random(0), tmp_path / "killed"
    for _ in range(count):
        process = start(tmp_path / "killed.py", str(run), "--resume", str(rng.uniform(0, 0.1)))
        assert process.wait(240) == -signal.SIGKILL, process.errors[-2000:]
        torch.load(max((run / "checkpoints").glob("state_*.pt")), weights_only=True)  # the newest is whole
    finish(start(script, str(run), "--resume"))
    same(newest(tmp_path / "straight"), newest(run))
    straight, killed = ((tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("straight", "killed"))
    assert [row.split(",")[0] for row in killed] == [row.split(",")[0] for row in straight]  # every row once
