"""Runs that are killed, whose disk is full, that get Ctrl-C, at random moments: each must end with the same weights.

    python tests/endure.py [--kills 100] [--full 20] [--ctrl-c 20] [--out results/endure.json]

Every run trains from files with workers, saves at every step, and is interrupted again and again until it ends; then
it is compared, bit for bit, with one that nobody touched. A full disk is a limit on the size of files that falls to 0
at a random moment (`prlimit`, Linux): every write after it fails. Ctrl-C goes to the whole group of processes, and the
workers are started by forkserver.
"""
import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from isd_nb.kernels.devices import machine
from isd_nb.protocols.storage import load_checkpoint, write_json

STEPS = 600
SCRIPT = f"""
import multiprocessing, sys
from dataclasses import replace
from pathlib import Path
def main():
    from isd_nb.data import ImageSet
    from isd_nb.engine.launch import one_sentence
    from isd_nb.engine.training import train
    from isd_nb.recipe import find_recipe
    recipe = replace(find_recipe("digits"), steps={STEPS}, batch_size=16, queue_size=40, width=4, projector=(8,),
                     predictor=(8,), evaluations=10, precision="float32")
    images = ImageSet(None, None, (), tuple(sorted(Path(sys.argv[2]).glob("*.png"))), (1, 16, 16))
    with one_sentence("isd_train"):
        train(recipe, images, sys.argv[3], resume=True, device="cpu", show=False, save_every=0, workers=1, threads=1)
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    main()
"""


class Run:
    "One run directory, and the processes that train in it one after the other."

    def __init__(self, place: Path, method: str = "fork") -> None:
        self.place, self.method, self.process = place, method, None

    def start(self) -> None:
        folder = self.place.parent
        command = [sys.executable, folder / "script.py", self.method, folder / "images", self.place]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True,
                                        env={**os.environ, "OMP_NUM_THREADS": "1"})

    def step(self) -> int:
        "Of the newest checkpoint; 0 without one."
        return max((int(p.stem.removeprefix("state_")) for p in self.place.glob("checkpoints/state_*.pt")), default=0)

    def wait_for_progress(self, seconds: float = 600) -> bool:  # False: it has ended
        "Until a step more has been saved."
        before, end = self.step(), time.monotonic() + seconds
        while self.process.poll() is None and self.step() <= before:
            if time.monotonic() > end:
                raise SystemExit(f"{self.place} makes no progress")
            time.sleep(0.002)
        return self.process.poll() is None

    def end(self, seconds: float = 600) -> str:  # what it printed
        return self.process.communicate(timeout=seconds)[1]


def kill(run: Run) -> str:
    run.process.kill()
    run.end()
    return ""


def fill_disk(run: Run) -> str:  # what is wrong; empty: nothing
    "No file can grow any more: the next write fails, and the command says so."
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    said, code = run.end(), run.process.returncode
    ended = code == 0 and run.step() == STEPS  # all had been written
    good = ended or (code == 2 and len(said.strip().splitlines()) == 1 and "could not be written" in said)
    return "" if good else f"exit code {code}: {said[-300:]}"


def interrupt(run: Run) -> str:  # what is wrong; empty: nothing
    "Ctrl-C in a terminal: SIGINT to every process of the group."
    os.killpg(run.process.pid, signal.SIGINT)
    said, code = run.end(), run.process.returncode
    ended = code == 0 and run.step() == STEPS
    good = ended or (code == 130 and len(said.strip().splitlines()) == 1 and "stopped at step" in said)
    return "" if good else f"exit code {code}: {said[-300:]}"


def same(run: Run, straight: Run) -> bool:
    "Whether method and optimiser are the same bit for bit."
    states = [load_checkpoint(r.place / "checkpoints") for r in (run, straight)]
    try:
        for part in ("method", "optimizer"):
            torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)
    except AssertionError:
        return False
    return states[0]["step"] == states[1]["step"] == STEPS


def endure(name: str, disturb: Callable[[Run], str], times: int, folder: Path, straight: Run, method: str,
           rng: random.Random) -> dict[str, object]:
    "Disturb runs so many times, one run after the other, and compare each with the undisturbed one at its end."
    done, runs, wrong, begun = 0, 0, [], time.monotonic()
    while done < times or not runs:
        runs += 1
        run = Run(folder / f"{name}-{runs}", method)
        running = True
        while running:
            run.start()
            if running := run.wait_for_progress() and done < times:
                time.sleep(rng.uniform(0, 0.5))
                if run.process.poll() is None:
                    wrong += [said] if (said := disturb(run)) else []
                    done += 1
                    running = run.step() < STEPS
                    continue
            wrong += [said[-300:]] if (said := run.end()) else []
            running = False
        wrong += [] if same(run, straight) else [f"{run.place.name} ended with other weights"]
        print(f"{name}: {done} of {times}, {runs} runs, {len(wrong)} wrong", flush=True)
    return dict(times=done, runs=runs, wrong=wrong, seconds=round(time.monotonic() - begun, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in (("--kills", 100), ("--full", 20), ("--ctrl-c", 20), ("--seed", 0)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path("results/endure.json"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, rng, draw = Path(temporary), random.Random(asked.seed), np.random.default_rng(asked.seed)
        (folder / "script.py").write_text(SCRIPT)
        (folder / "images").mkdir()
        for i in range(100):
            Image.fromarray(draw.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / "images" / f"{i:03}.png")
        straight = Run(folder / "straight")
        straight.start()
        if said := straight.end():
            raise SystemExit(f"the undisturbed run printed: {said}")
        kinds = (("sigkill", kill, asked.kills, "fork"), ("full_disk", fill_disk, asked.full, "fork"),
                 ("ctrl_c", interrupt, asked.ctrl_c, "forkserver"))
        found = {name: endure(name, disturb, times, folder, straight, method, rng)
                 for name, disturb, times, method in kinds}
    command = " ".join(["python tests/endure.py", *sys.argv[1:]])
    write_json(asked.out, dict(command=command, machine=machine(), steps=STEPS, **found))
    if any(kind["wrong"] for kind in found.values()):
        raise SystemExit(f"not every run ended as it should: see {asked.out}")


if __name__ == "__main__":
    main()
