"""Everything that has to be measured on a GPU, in one command of less than 8 minutes.

    python benchmarks/gpu.py [--json FILE]

For ResNet-18 with the small-image stem on 32 x 32 colour images, at each batch size:

* images a second of `isd_nb.engine.state.train_step`, views included, and of a plain pipeline (`benchmarks/step.py`:
  Pillow views in worker processes, float32, the full batch-by-queue matrix), in turns;
* the share of the GPU's measured bfloat16 rate: operations of a step (convolutions and matrix products, counted by
  PyTorch) a second, over those of a large matrix product on the same device;
* the share of time spent waiting for data: how much longer the real loop takes than one that is given the same pixels
  again and again.

And the streaming loss, forward and backward, at many anchors, against its floor: the matrix products it cannot do
without, of the same shapes and in the same precision, with nothing in between. On CUDA, one read of
the queue is timed in blocks and in the kernel of `isd_nb.kernels.triton_attention`.

On a CPU, at small sizes, to see that it works:

    python benchmarks/gpu.py --device cpu --network tiny --batches 32 --images 256 --anchors 1024 --loss-anchors 4096 \\
        --workers 2 --steps 2 --rounds 1 --matrix 512
"""
import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from common import about
from step import PlainStep, TwoViews, loader_turn, plain_transform, synchronize
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isd_nb.data import ImageSet
from isd_nb.encoders import BackboneConfig
from isd_nb.kernels.attention import blockwise_attention
from isd_nb.loss import streaming_soft_label_loss
from isd_nb.engine.state import TrainState, prepare_training, train_step
from isd_nb.recipe import Recipe
from isd_nb.sources.batches import EpochSampler
from isd_nb.views import STRONG


def seconds(run: Callable[[], object], device: str, rounds: int, times: int = 1) -> float:
    "Median seconds of one call, after one to warm up."
    run()
    found = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(times):
            run()
        synchronize(device)
        found.append((time.perf_counter() - start) / times)
    return statistics.median(found)


def check_shared_memory(args: argparse.Namespace) -> None:
    "The plain pipeline's workers hand over their batches through /dev/shm, which is 64 MB in many containers."
    needed = args.workers * 2 * max(args.batches) * 2 * 3 * 32 * 32 * 4  # two batches each of two float32 views
    place = Path("/dev/shm")
    if place.is_dir() and (free := shutil.disk_usage(place).free) < needed:
        raise SystemExit(f"{args.workers} workers take {needed / 1e6:.0f} MB in /dev/shm, {free / 1e6:.0f} are free: "
                         "take fewer --workers, or give the container more (docker: --shm-size)")


def bfloat16_rate(args: argparse.Namespace) -> float:
    "Operations a second of a large bfloat16 matrix product."
    a, b = (torch.randn(args.matrix, args.matrix, device=args.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * args.matrix**3 / seconds(lambda: a @ b, args.device, args.rounds, 10)


def recipe_of(batch: int, args: argparse.Namespace) -> Recipe:
    return Recipe("bench", steps=10**9, batch_size=batch, image_size=32, backbone=args.network, queue_size=args.anchors,
                  views=replace(STRONG, blur=0), projector=(512, 128), predictor=(512,))


class OurLoop:
    "The real loop, and the same loop without fetching."

    def __init__(self, state: TrainState, images: int) -> None:
        self.state, self.plan = state, iter(EpochSampler(images, state.recipe.batch_size, 0, stop=10**9))
        self.indices = next(self.plan)
        self.pixels = state.images.get(self.indices)

    def real(self) -> None:
        indices = next(self.plan)
        train_step(self.state, indices, self.state.images.get(indices))

    def given(self) -> None:
        train_step(self.state, self.indices, self.pixels)

    def operations(self) -> int:
        "Of one step: convolutions and matrix products."
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            self.given()
        return counter.get_total_flops()


def step_row(batch: int, images: Tensor, rate: float, args: argparse.Namespace) -> dict[str, float]:
    "All that is measured of whole steps at one batch size."
    recipe, device = recipe_of(batch, args), args.device
    loop = OurLoop(prepare_training(recipe, ImageSet(images), device), len(images))
    for _ in range(3):
        loop.real()
    operations = loop.operations()
    plain = PlainStep(BackboneConfig(args.network, 3, recipe.width), recipe.projector, args.anchors, device)
    settings = argparse.Namespace(device=device, workers=args.workers, batch=batch, steps=args.steps)
    plain_turn = loader_turn(plain, TwoViews(images, plain_transform(32)), settings)
    rounds = []
    for _ in range(args.rounds + 1):
        real, given = (seconds(run, device, 1, 2 * args.steps) for run in (loop.real, loop.given))
        rounds.append(dict(real=real, given=given, plain=plain_turn() * batch))
    middle = {name: statistics.median(r[name] for r in rounds[1:]) for name in rounds[0]}
    return dict(batch=batch, images_per_second=round(batch / middle["real"]),
                plain_images_per_second=round(batch / middle["plain"]),
                faster_than_plain=round(statistics.median(r["plain"] / r["real"] for r in rounds[1:]), 2),
                share_of_bfloat16_rate=round(operations / middle["real"] / rate, 4),
                share_waiting_for_data=round(statistics.median(1 - r["given"] / r["real"] for r in rounds[1:]), 4),
                operations_per_step=operations)


def loss_row(args: argparse.Namespace) -> dict[str, float]:
    "The streaming loss against its matrix products alone, in single precision as the loss computes."
    batch, dim, block = 256, args.loss_dim, 16_384
    unit = [F.normalize(torch.randn(n, dim, device=args.device), dim=1) for n in (batch, batch, args.loss_anchors)]
    queries, keys, anchors = unit[0].requires_grad_(), *unit[1:]
    looks = torch.cat([queries.detach(), keys])  # (2B, D): student and teacher read the queue together

    def loss() -> None:
        queries.grad = None
        streaming_soft_label_loss(queries, keys, anchors).backward()

    def floor() -> None:
        for part in anchors.split(block):
            (looks @ part.T) @ part

    turns = [(seconds(loss, args.device, 1, 5), seconds(floor, args.device, 1, 5)) for _ in range(args.rounds)]
    return dict(batch=batch, anchors=args.loss_anchors, dim=dim,
                loss_ms=round(1e3 * statistics.median(a for a, _ in turns), 3),
                floor_ms=round(1e3 * statistics.median(b for _, b in turns), 3),
                times_the_floor=round(statistics.median(a / b for a, b in turns), 2),
                forms_ms=time_forms(looks / 0.04, anchors, args))


def time_forms(looks: Tensor, anchors: Tensor, args: argparse.Namespace) -> dict[str, float | str]:
    "Milliseconds of one read of the queue in blocks and in one kernel, or why it does not run."
    if args.device == "cpu" or not find_spec("triton"):
        return {}
    from isd_nb.kernels.triton_attention import fused_attention, is_right

    found: dict[str, float | str] = {}
    for name, reader in {"blocks": partial(blockwise_attention, block=16384), "one kernel": fused_attention}.items():
        try:
            took = seconds(partial(reader, looks, anchors), args.device, args.rounds, 5)
            found[name] = round(1e3 * took, 3) if is_right(reader, looks, anchors) else "its result is wrong"
        except Exception as error:  # a form that this card cannot compile must not end the other measurements
            found[name] = f"{type(error).__name__}: {error}"[:200]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--network", default="resnet18")
    numbers = {"images": 20_000, "anchors": 16_384, "loss-anchors": 131_072, "loss-dim": 512, "workers": 16,
               "steps": 20, "rounds": 5, "matrix": 8192}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 512])
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device; `--device cpu` with small sizes shows that the script works")
    check_shared_memory(args)
    start, rate = time.perf_counter(), bfloat16_rate(args)
    print(f"bfloat16 matrix product: {rate / 1e12:.2f} tera-operations/s", flush=True)
    images = torch.randint(0, 256, (args.images, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    rows = []
    for batch in args.batches:
        rows.append(step_row(batch, images, rate, args))
        print("  ".join(f"{name} {value:,}" for name, value in rows[-1].items()), flush=True)
    loss = loss_row(args)
    print("  ".join(f"{name} {value}" for name, value in loss.items()))
    took = round(time.perf_counter() - start)
    print(f"{took} s in all")
    if args.json:
        settings = about("gpu", network=args.network, anchors=args.anchors, workers=args.workers, rounds=args.rounds)
        found = dict(bfloat16_operations_per_second=rate, steps=rows, loss=loss, seconds=took)
        args.json.write_text(json.dumps(settings | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
