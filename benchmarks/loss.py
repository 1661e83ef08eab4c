"""Time and memory of ISD's loss, with the full matrix and streaming, from a thousand anchors to a million.

    python benchmarks/loss.py [--json results/bench/loss.json]

Time: forward and backward, the contestants alternate in one process; reported is the median over rounds of the ratio
(time of the full matrix / time of the streaming form; above 1 the streaming form is faster), with its quartiles.
Memory: one process per case (Linux only); reported is by how much one pass raises the resident memory at its peak,
beyond its inputs (queue included), in MB. `bfloat16` is the streaming form with rounded products, on processors that
have them; there training uses it.
"""
import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from common import about
from torch import Tensor

from isd_nb.kernels.devices import has_bfloat16
from isd_nb.loss import soft_label_loss, streaming_soft_label_loss

CONTESTANTS = {"full": soft_label_loss, "streaming": streaming_soft_label_loss,
               "blocks": partial(streaming_soft_label_loss, block=1024)}
if has_bfloat16("cpu"):
    CONTESTANTS["bfloat16"] = partial(streaming_soft_label_loss, products=torch.bfloat16)
SIZES = (1_024, 4_096, 16_384, 65_536, 131_072, 1_048_576)
STUDENT, TEACHER = 0.1, 0.02  # temperatures


def unit_rows(rows: int, dim: int, generator: torch.Generator) -> Tensor:  # (rows, dim)
    "Random directions, made piece by piece so that making them does not set the peak of memory."
    result = torch.empty(rows, dim)
    for part in result.split(4096):
        part.normal_(generator=generator)
        part.div_(part.norm(dim=1, keepdim=True))
    return result


def inputs(batch: int, dim: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries, keys = unit_rows(batch, dim, generator), unit_rows(batch, dim, generator)
    return queries.requires_grad_(), keys, unit_rows(size, dim, generator)


def once(name: str, queries: Tensor, keys: Tensor, anchors: Tensor) -> float:
    "Seconds for one forward and backward pass."
    queries.grad = None
    start = time.perf_counter()
    CONTESTANTS[name](queries, keys, anchors, STUDENT, TEACHER).backward()
    return time.perf_counter() - start


def ratios(batch: int, dim: int, size: int, names: list[str], rounds: int) -> dict[str, list[float]]:
    "Quartiles of full / contestant over alternating rounds, after two rounds of warm-up."
    case = inputs(batch, dim, size)
    rows = [{name: once(name, *case) for name in names} for _ in range(rounds + 2)][2:]
    quotients = {name: [row["full"] / row[name] for row in rows] for name in names if name != "full"}
    return {name: [round(q, 2) for q in statistics.quantiles(values, n=4)] for name, values in quotients.items()}


def resident_mb(field: str) -> float:  # field: VmRSS, what this process holds now, or VmHWM, the most it ever held
    "Linux keeps both; `ru_maxrss` would not do, since a child inherits the peak of the process that started it."
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith(field))) / 1024


def growth_mb(batch: int, dim: int, size: int, name: str) -> float:
    "In a process of its own: by how much one pass raises the peak."
    command = [sys.executable, __file__, "--child", name, "--size", str(size), "--batch", str(batch), "--dim", str(dim)]
    return round(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout), 1)


def child(batch: int, dim: int, size: int, name: str) -> None:
    once(name, *inputs(8, dim, 64))  # loads the libraries
    case = inputs(batch, dim, size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = resident_mb("VmRSS")
    once(name, *case)
    print(resident_mb("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--size", type=int, nargs="*", default=SIZES, help="numbers of anchors")
    parser.add_argument("--cap-gb", type=float, default=4, help="skip the full matrix where it would need more")
    parser.add_argument("--child", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.batch, args.dim, args.size[0], args.child)
    rows = []
    others = [name for name in CONTESTANTS if name != "full"]
    print(f"{'anchors':>10}" + "".join(f" | {'full / ' + name:>25}" for name in others)
          + "".join(f" | MB {name:>9}" for name in CONTESTANTS))
    for size in args.size:
        names = list(CONTESTANTS)
        if 6 * 4 * args.batch * size > args.cap_gb * 1e9:  # about six (B, K) matrices at its peak
            names.remove("full")
        rounds = max(5, min(40, 2**18 // size))
        growth = {name: growth_mb(args.batch, args.dim, size, name) for name in names}
        row = {"anchors": size, "rounds": rounds, "growth_mb": growth}
        row["ratio_quartiles"] = ratios(args.batch, args.dim, size, names, rounds) if "full" in names else {}
        rows.append(row)
        found = [row["ratio_quartiles"].get(name, [math.nan] * 3) for name in others]
        print(f"{size:10,}" + "".join(f" | {middle:8.2f} ({low:5.2f} to {high:5.2f})" for low, middle, high in found)
              + "".join(f" | {growth.get(name, math.nan):12.1f}" for name in CONTESTANTS), flush=True)
    if args.json:
        temperatures = dict(student=STUDENT, teacher=TEACHER)
        settings = about("loss", batch=args.batch, dim=args.dim, seed=0, temperatures=temperatures)
        args.json.write_text(json.dumps(settings | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
