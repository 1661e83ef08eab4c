"""What a busy neighbour costs: images per second of training on digits, alone and beside one busy process.

    python benchmarks/threads.py [--json FILE] [--rounds 7] [--seconds 20] [--neighbours 1]

Threads chosen while training, one thread, and as many as there are cores take turns, each alone and beside processes of
the same priority that compute without a pause. A rate is that of the second half of the time, when what is to be chosen
has been chosen. Printed are medians over the rounds, and what is left beside the neighbours of the best rate without.
"""
import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from common import about

from isd_nb.engine.state import prepare_training, train_step
from isd_nb.engine.threads import ThreadChoice
from isd_nb.protocols.storage import write_json
from isd_nb.recipe import find_recipe
from isd_nb.sources.batches import EpochSampler
from isd_nb.sources.digits import digits

CONTESTANTS = ("chosen", "one", "all")


def rate(kind: str, seconds: float) -> float:  # images per second
    "Train with such threads, in this process."
    state = prepare_training(find_recipe("digits"), digits()[0], "cpu")
    state.threads = ThreadChoice({"chosen": None, "one": 1, "all": torch.get_num_threads()}[kind])
    plan = iter(EpochSampler(len(state.images), state.recipe.batch_size, 0, 0, state.steps))
    begun, half, seen = time.perf_counter(), None, 0
    while (now := time.perf_counter() - begun) < seconds:
        if half is None and now > seconds / 2:
            half, seen = now, 0
        indices = next(plan)
        with state.threads.step():
            train_step(state, indices, state.images.get(indices))
        seen += len(indices)
    return seen / (time.perf_counter() - begun - (half or 0))


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    "So many processes that compute without a pause, of this process's priority."
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measured(kind: str, seconds: float) -> float:
    "The rate, in a process of its own."
    command = [sys.executable, __file__, "--one", kind, "--seconds", str(seconds)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(rounds: int, seconds: float, count: int) -> dict[str, dict[str, list[float]]]:
    "The rates of all rounds, by contestant, quiet and busy."
    rates = {kind: {"quiet": [], "busy": []} for kind in CONTESTANTS}
    for _ in range(rounds):
        for kind in CONTESTANTS:
            rates[kind]["quiet"].append(measured(kind, seconds))
            with neighbours(count):
                rates[kind]["busy"].append(measured(kind, seconds))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--neighbours", type=int, default=1)
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        return print(rate(asked.one, asked.seconds))
    rates = compare(asked.rounds, asked.seconds, asked.neighbours)
    medians = {kind: {name: statistics.median(values) for name, values in pair.items()} for kind, pair in rates.items()}
    best = max(pair["quiet"] for pair in medians.values())
    print(f"{'threads':<8}{'quiet':>10}{'busy':>10}   images/s; left of the best quiet rate")
    for kind, pair in medians.items():
        print(f"{kind:<8}{pair['quiet']:>10,.0f}{pair['busy']:>10,.0f}   {pair['busy'] / best:.0%}")
    if asked.json:
        write_json(asked.json, about("threads", rounds=asked.rounds, seconds=asked.seconds, neighbours=asked.neighbours,
                                     priority=os.nice(0), rates=rates, medians=medians,
                                     left={kind: pair["busy"] / best for kind, pair in medians.items()}))


if __name__ == "__main__":
    main()
