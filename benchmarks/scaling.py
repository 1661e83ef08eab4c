"""What a training step costs: against the batch, the size of the images, and the number of processes.

    python benchmarks/scaling.py [--json FILE] [--batches 32 64 ...] [--sizes 16 32 ...] [--processes 1 2 ...]

`isd_nb.engine.state.train_step` on the five-layer net, on random colour images. One setting changes at a time; the
others
stay at batch 256, 32 x 32 pixels, one process. All cases take turns, and each round's time is divided by that of the
middle case in the same round; medians are printed. Processes are started anew for every round with `torchrun`, and
share the cores: one of them has all threads, two have half of them each.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import about

from isd_nb.data import ImageSet
from isd_nb.engine.state import prepare_training, synchronize, train_step
from isd_nb.engine.training import batches
from isd_nb.recipe import Recipe

BATCH, SIZE = 256, 32


def turn_of(batch: int, size: int, anchors: int, device: str, images: int) -> Callable[[], float]:
    "Microseconds an image takes, over so many images, after one step to warm up."
    recipe = Recipe("bench", steps=10**9, batch_size=batch, image_size=size, queue_size=max(anchors, batch))
    generator = torch.Generator().manual_seed(0)
    bank = ImageSet(torch.randint(0, 256, (max(1024, batch), 3, size, size), generator=generator).to(torch.uint8))
    state = prepare_training(recipe, bank, device)
    stream, steps = batches(state), max(2, images // batch)

    def turn() -> float:
        train_step(state, *next(stream))
        synchronize(state)
        start = time.perf_counter()
        for _ in range(steps):
            train_step(state, *next(stream))
        synchronize(state)
        return 1e6 * (time.perf_counter() - start) / (steps * batch)
    return turn


def processes_turn(count: int, args: argparse.Namespace) -> float:
    "The same in `count` processes that share one batch, started by torchrun; the first one's clock."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", __file__,
               "--child", f"--images={args.images}", f"--anchors={args.anchors}", f"--device={args.device}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(found.stdout.split()[-1])


def child(args: argparse.Namespace) -> None:
    turn = turn_of(BATCH, SIZE, args.anchors, args.device, args.images)
    turn()
    took = turn()
    if int(os.environ["RANK"]) == 0:
        print(took)
    torch.distributed.destroy_process_group()


def summary(rounds: list[dict[int, float]], base: int) -> dict[str, dict[str, float]]:
    "Medians, and medians of the ratio to the base case of the same round."
    return {str(case): dict(microseconds=round(statistics.median(r[case] for r in rounds), 1),
                            ratio=round(statistics.median(r[case] / r[base] for r in rounds), 3)) for case in rounds[0]}


def take_turns(turns: dict[int, Callable[[], float]], repeats: int, base: int) -> dict[str, dict[str, float]]:
    rounds = [{case: turn() for case, turn in turns.items()} for _ in range(repeats + 1)]
    return summary(rounds[1:], base)  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--anchors", type=int, default=4096)
    parser.add_argument("--batches", type=int, nargs="*", default=[32, 64, 128, 256, 512, 1024])
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 32, 64, 96])
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--images", type=int, default=1024, help="images in each turn")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    middle = {kind: default if default in given else given[0] for kind, given, default in
              (("batch", args.batches, BATCH), ("size", args.sizes, SIZE), ("processes", args.processes, 1))}
    def turn(batch: int, size: int) -> Callable[[], float]:
        return turn_of(batch, size, args.anchors, args.device, args.images)

    results = dict(batch=take_turns({b: turn(b, SIZE) for b in args.batches}, args.repeats, middle["batch"]),
                   size=take_turns({s: turn(BATCH, s) for s in args.sizes}, args.repeats, middle["size"]))
    if args.processes:
        rounds = [{p: processes_turn(p, args) for p in args.processes} for _ in range(max(1, args.repeats // 2))]
        results["processes"] = summary(rounds, middle["processes"])
    for kind, rows in results.items():
        print(f"{kind:>12} {'microseconds/image':>20} {'ratio':>8}")
        for case, row in rows.items():
            print(f"{case:>12} {row['microseconds']:>20,.1f} {row['ratio']:>8.2f}", flush=True)
    if args.json:
        settings = about("scaling", anchors=args.anchors, device=args.device, images=args.images,
                         rounds=args.repeats, base=middle)
        args.json.write_text(json.dumps(settings | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
