"""Where the time of a training step goes on a CPU, and what its products could not go below.

    python benchmarks/parts.py [--json FILE] [--blur] [--network tiny|resnet18]

The step is that of `benchmarks/step.py`. PyTorch's profiler adds up, step by step, the time of each kind of operation;
the median over steps counts. The floor of a kind is the number of its operations (counted by PyTorch) over the rate of
one large matrix product in the same precision, which is measured between the steps, so that a busy machine slows both.
"""
import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from common import about
from step import made_up_images, our_recipe
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from isd_nb.data import ImageSet
from isd_nb.engine.state import TrainState, prepare_training, train_step
from isd_nb.engine.training import batches
from isd_nb.methods.building import pick_precision

KINDS = {"convolutions": ("convolution",),
         "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "flash_attention"),
         "batch norm": ("batch_norm",), "ReLU": ("relu", "clamp_min", "threshold"), "exponentials": ("aten::exp",)}
REST = "the rest"  # views (their resampling is a matrix product), sums, copies, the optimiser, PyTorch's own work


def kind_of(operation: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), REST)


def profiled(state: TrainState, stream: Iterator) -> dict[str, float]:
    """Milliseconds of one step by kind; the profiler's own cost falls on many small operations, and so on the rest."""
    batch = next(stream)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        train_step(state, *batch)
    times = dict.fromkeys([*KINDS, REST], 0.0)
    for event in found.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total / 1e3
    return times


def operations(state: TrainState, stream: Iterator) -> dict[str, float]:
    """Floating-point operations of one step by kind, a multiplication with its addition as two."""
    with FlopCounterMode(display=False) as counter:
        train_step(state, *next(stream))
    counts = dict.fromkeys([*KINDS, REST], 0.0)
    for operation, count in counter.get_flop_counts()["Global"].items():
        counts[kind_of(str(operation).replace(".", "::"))] += count
    return counts


def product_rate(size: int, dtype: torch.dtype) -> float:
    """Operations a second of one large matrix product."""
    a = torch.randn(size, size).to(dtype)
    a @ a
    start = time.perf_counter()
    a @ a
    return 2 * size**3 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--network", default="tiny", help="tiny (five layers from width 16), resnet18")
    parser.add_argument("--blur", action="store_true", help="the authors' strong views: half of them blurred")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--anchors", type=int, default=16_384)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=40, help="steps that count")
    parser.add_argument("--matrix", type=int, default=2048, help="rows and columns of the large product")
    args = parser.parse_args()
    precision = pick_precision("auto", torch.device("cpu"))
    state = prepare_training(our_recipe(args), ImageSet(made_up_images(args.images)), "cpu")
    stream = batches(state)
    for _ in range(5):  # warms up
        train_step(state, *next(stream))
    counts, times, rates, whole = operations(state, stream), [], [], []
    for _ in range(args.steps):
        rates.append(product_rate(args.matrix, precision))
        times.append(profiled(state, stream))
        batch = next(stream)
        start = time.perf_counter()
        train_step(state, *batch)
        whole.append(1e3 * (time.perf_counter() - start))
    rate, step = statistics.median(rates), statistics.median(whole)
    rows = {kind: dict(milliseconds=round(statistics.median(t[kind] for t in times), 2),
                       gigaoperations=round(counts[kind] / 1e9, 2), floor=round(1e3 * counts[kind] / rate, 2))
            for kind in times[0]}
    print(f"{'':18}{'ms a step':>10}{'10^9 operations':>18}{'floor, ms':>12}")
    for kind, row in rows.items():
        products = f"{row['gigaoperations']:>18.2f}{row['floor']:>12.1f}" if counts[kind] else ""
        print(f"{kind:18}{row['milliseconds']:>10.1f}{products}")
    floor = 1e3 * sum(counts.values()) / rate
    print(f"a step without profiler {step:.1f} ms ({min(whole):.1f} at best); its products at the rate of a large one, "
          f"{rate / 1e9:,.0f} * 10^9 a second: {floor:.1f} ms, {floor / step:.0%} of it")
    if args.json:
        found = dict(rows=rows, step_milliseconds=round(step, 1), best_milliseconds=round(min(whole), 1),
                     product_rate=round(rate / 1e9, 1), floor_milliseconds=round(floor, 1))
        settings = about("parts", batch=args.batch, anchors=args.anchors, blur=args.blur, network=args.network,
                         device="cpu", steps=args.steps, precision=str(precision))
        args.json.write_text(json.dumps(settings | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
