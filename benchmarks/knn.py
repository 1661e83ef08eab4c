"""Time the exact nearest-neighbour search and the linear layer on cached features.

    python benchmarks/knn.py [--json FILE] [--train 50000] [--test 10000] [--features 512] [--rounds 5]

`isd_nb.kernels.nearest_neighbours.nearest` against scikit-learn's brute force and, if it is installed, faiss'
IndexFlatIP, on the same random unit vectors. The contestants take turns; each round's time is divided by ours of the
same round, and the medians are printed. A ratio above 1 means that the other one took longer.
"""
import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import about
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from isd_nb.kernels.devices import has_bfloat16
from isd_nb.evaluation import knn_accuracy, linear_accuracy
from isd_nb.kernels.nearest_neighbours import nearest

try:
    import faiss
except ImportError:
    faiss = None


def contestants(bank: Tensor, queries: Tensor, k: int) -> dict[str, Callable[[], np.ndarray]]:
    "Everyone answers with the numbers of the k nearest rows, (M, k); building an index is part of the work."
    def ours() -> np.ndarray:
        return nearest(bank, queries, k)[1].numpy()

    def sklearn() -> np.ndarray:
        return NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine").fit(bank).kneighbors(queries)[1]

    def flat_index() -> np.ndarray:
        index = faiss.IndexFlatIP(bank.shape[1])
        index.add(bank.numpy())
        return index.search(queries.numpy(), k)[1]

    return {"isd_nb": ours, "scikit-learn": sklearn} | ({"faiss": flat_index} if faiss else {})


def race(entrants: dict[str, Callable[[], np.ndarray]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    "Median seconds, and median of each round's time over ours."
    seconds = {name: [] for name in entrants}
    for number in range(rounds):
        order = list(entrants) if number % 2 == 0 else list(entrants)[::-1]  # nobody always runs first
        for name in order:
            start = time.perf_counter()
            entrants[name]()
            seconds[name].append(time.perf_counter() - start)
    mine = seconds["isd_nb"]
    ratios = {name: [a / b for a, b in zip(times, mine, strict=True)] for name, times in seconds.items()}
    return ({name: statistics.median(times) for name, times in seconds.items()},
            {name: statistics.median(values) for name, values in ratios.items()})


def evaluation_seconds(bank: Tensor, queries: Tensor, generator: torch.Generator) -> float:
    "Time of 20-NN and the linear layer together, on random labels of ten classes."
    tags, asked = (torch.randint(0, 10, (len(x),), generator=generator) for x in (bank, queries))
    start = time.perf_counter()
    knn_accuracy(bank, tags, queries, asked)
    linear_accuracy(bank, tags, queries, asked)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the results to this file")
    sizes = {"train": 50_000, "test": 10_000, "features": 512, "neighbours": 20, "rounds": 5, "seed": 0}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    if faiss:
        faiss.omp_set_num_threads(threads)
    generator = torch.Generator().manual_seed(args.seed)
    bank, queries = (F.normalize(torch.randn(n, args.features, generator=generator), dim=1)
                     for n in (args.train, args.test))
    warm = {name: run() for name, run in contestants(bank, queries[:2048], args.neighbours).items()}
    agree = {name: float((rows == warm["isd_nb"]).mean()) for name, rows in warm.items()}
    seconds, ratios = race(contestants(bank, queries, args.neighbours), args.rounds)
    for name in seconds:
        print(f"{name:14}{seconds[name]:8.2f} s   x {ratios[name]:.2f}   same neighbours: {agree[name]:.2%}")
    both = evaluation_seconds(bank, queries, generator)
    print(f"20-NN and linear layer together: {both:.1f} s")
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        result = about("knn", settings=settings, seconds=seconds, ratio=ratios, same_neighbours=agree,
                       knn_and_linear_seconds=both, bfloat16=has_bfloat16("cpu"))
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
