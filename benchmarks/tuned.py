"""What each choice of the tuned peer (`peer.py`) is worth on this machine: its attempts in turns.

    python benchmarks/tuned.py [--json FILE]
"""
import argparse
import json
import statistics
import time
from pathlib import Path

from common import about
from peer import ATTEMPTS
from race import tuned_training  # the same construction as in the race


def compare(method: str, rounds: int, steps: int, names: list[str]) -> dict[str, dict]:
    """Every attempt takes turns with the others, on the network, views and images of the recipe digits."""
    trainings = {name: tuned_training(method, 0, ATTEMPTS[name]) for name in names}
    for training in trainings.values():  # compiles
        training()
        training()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, training in trainings.items():
            start = time.perf_counter()
            for _ in range(steps):
                training()
            seconds[name].append((time.perf_counter() - start) / (steps * training.batch))
    base = seconds[names[0]]
    return {name: dict(images_per_second=round(1 / statistics.median(taken)),
                       ratio=round(statistics.median(b / t for b, t in zip(base, taken)), 3))
            for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--method", default="isd", choices=["isd", "moco_v2"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="steps in each turn")
    parser.add_argument("--attempts", nargs="*", default=list(ATTEMPTS), choices=list(ATTEMPTS))
    args = parser.parse_args()
    names = ["as it is", *(name for name in args.attempts if name != "as it is")]
    rows = compare(args.method, args.rounds, args.steps, names)
    for name, row in rows.items():
        print(f"{name:24}{row['images_per_second']:>8,} images/s   {row['ratio']:.2f}x as it is")
    if args.json:
        settings = about("tuned", method=args.method, rounds=args.rounds, steps=args.steps)
        args.json.write_text(json.dumps(settings | {"results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
