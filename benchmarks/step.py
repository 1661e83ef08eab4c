"""How fast is a whole training step? Ours, against the usual pipeline and lightly's parts.

    python benchmarks/step.py [--json FILE] [--blur] [--network tiny|resnet18] [--device cpu|cuda]

All train the same network on the same colour images with the same two strong views an image, the same batch and the
same number of anchors; all numbers include making the views. Without `--blur` the views are those usual for small
images; with it they are the ISD authors' strong views, where half of them are blurred.

* `ours`: `isd_nb.engine.state.train_step`, as `isd_train` runs it (views of the whole batch on the device,
  channels_last,
  bfloat16 where the processor has it, streaming loss, foreach moving average).
* `ours in N processes`: the same, N processes sharing each batch (`isd_train --processes N`), each with its part of the
  cores; each treats its part of the batch separately in batch norm.
* `plain`: what training scripts for these methods usually do (torchvision views of PIL images in worker processes,
  float32, default memory layout, a loop over parameters for the moving average, the full batch-by-queue matrix).
* `tuned`: ISD as an expert would write it with public parts (`peer.py`); on a CPU only.
* `lightly`: lightly's MoCo v2 transform in worker processes, its memory bank and its contrastive loss, in the same
  plain loop; left out, with a message, where lightly is not installed.

Each contestant has a process of its own, as somebody would run it: threads, worker processes and the ways of the memory
allocator (ours keeps freed memory) are not shared. They take turns; a ratio is the median over the rounds of (their
seconds an image / ours). A turn begins when the others' worker processes have done what they do ahead and are idle.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as tv
from common import about
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from peer import TunedStep, TunedTraining, TunedViews

from isd_nb.engine.launch import free_port
from isd_nb.data import ImageSet
from isd_nb.encoders import BackboneConfig, build_backbone, mlp
from isd_nb.engine.state import prepare_training, train_step
from isd_nb.engine.training import batches
from isd_nb.methods.building import pick_precision
from isd_nb.recipe import Recipe
from isd_nb.views import STRONG

COLOURS = (STRONG.brightness, STRONG.contrast, STRONG.saturation, STRONG.hue)


class TwoViews(Dataset):
    """PIL images, and two random views of each."""

    def __init__(self, images: Tensor, transform: Callable) -> None:
        self.pictures, self.transform = [tv.functional.to_pil_image(i) for i in images], transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.pictures[index]), self.transform(self.pictures[index])


class LightlyViews(TwoViews):
    """The same with a transform that makes both views itself."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return tuple(self.transform(self.pictures[index]))


def blurred(picture: Image.Image) -> Image.Image:
    """Pillow's blur, as the authors' and MoCo's scripts use it: quicker than torchvision's, which goes by tensors."""
    return picture.filter(ImageFilter.GaussianBlur(random.uniform(*STRONG.blur_sigma)))


def plain_transform(size: int, blur: bool = False) -> tv.Compose:
    return tv.Compose([
        tv.RandomResizedCrop(size, STRONG.crop_scale, STRONG.crop_ratio, antialias=True),
        tv.RandomApply([tv.ColorJitter(*COLOURS)], STRONG.jitter), tv.RandomGrayscale(STRONG.grey),
        *([tv.RandomApply([tv.Lambda(blurred)], STRONG.blur)] if blur else []), tv.RandomHorizontalFlip(STRONG.flip),
        tv.ToImage(), tv.ToDtype(torch.float32, scale=True), tv.Normalize([0.5] * 3, [0.25] * 3)])


class PlainStep:
    """Student, predictor, teacher and queue of ISD in the usual words."""

    def __init__(self, config: BackboneConfig, dims: tuple[int, int], anchors: int, device: str) -> None:
        def encoder() -> nn.Module:
            backbone = build_backbone(config)
            return nn.Sequential(backbone, mlp(backbone.num_features, *dims)).to(device)
        self.student, self.teacher = encoder(), encoder()
        self.predictor = mlp(dims[1], dims[0], dims[1]).to(device)
        self.teacher.load_state_dict(self.student.state_dict())
        self.queue, self.place = F.normalize(torch.randn(anchors, dims[1], device=device), dim=1), 0
        learns = [*self.student.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.SGD(learns, 0.06, momentum=0.9, weight_decay=1e-4)

    def compare(self, view_q: Tensor, view_k: Tensor) -> tuple[Tensor, Tensor]:
        queries = F.normalize(self.predictor(self.student(view_q)), dim=1)
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), self.student.parameters()):
                mine.data.mul_(0.99).add_(theirs.data, alpha=0.01)
            keys = F.normalize(self.teacher(view_k), dim=1)
        return queries, keys

    def loss(self, queries: Tensor, keys: Tensor) -> Tensor:
        anchors = self.queue.clone().detach()
        labels = (keys @ anchors.T / 0.02).softmax(1)
        return F.kl_div((queries @ anchors.T / 0.1).log_softmax(1), labels, reduction="batchmean")

    def enqueue(self, keys: Tensor) -> None:
        self.queue[self.place:self.place + len(keys)] = keys
        self.place = (self.place + len(keys)) % len(self.queue)

    def __call__(self, view_q: Tensor, view_k: Tensor) -> None:
        queries, keys = self.compare(view_q, view_k)
        loss = self.loss(queries, keys)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.enqueue(keys)


class LightlyStep(PlainStep):
    """The plain step with lightly's contrastive loss and memory bank."""

    def __init__(self, *args) -> None:
        from lightly.loss import NTXentLoss

        super().__init__(*args)
        self.criterion = NTXentLoss(temperature=0.1, memory_bank_size=tuple(self.queue.shape)).to(self.queue.device)

    def loss(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.criterion(queries, keys)

    def enqueue(self, keys: Tensor) -> None:
        """The criterion did it."""


def loader_turn(step: PlainStep, dataset: Dataset, args: argparse.Namespace) -> Callable[[], float]:
    """Seconds an image over `steps` steps, the workers being there already and some batches ahead, as in a long run.

    Images are drawn with replacement, so that no epoch ends in a turn: there the workers would drain and start anew.
    """
    device, workers = args.device, args.workers
    order = RandomSampler(dataset, replacement=True, num_samples=10**7)
    stream = iter(DataLoader(dataset, args.batch, sampler=order, drop_last=True, num_workers=workers,
                             pin_memory=device == "cuda"))

    def turn() -> float:
        step(*(v.to(device, non_blocking=True) for v in next(stream)))  # restart the flow after the other's turn
        for _ in range(2 * workers):  # what the workers did ahead during the other's turn is not counted
            next(stream)
        start = time.perf_counter()
        for _ in range(args.steps):
            step(*(v.to(device, non_blocking=True) for v in next(stream)))
        synchronize(device)
        return (time.perf_counter() - start) / (args.steps * args.batch)
    return turn


def made_up_images(count: int) -> Tensor:  # uint8 (count, 3, 32, 32)
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, size=32, mode="bilinear") * 255).to(torch.uint8)


def our_recipe(args: argparse.Namespace) -> Recipe:
    return Recipe("bench", steps=10**9, batch_size=args.batch, image_size=32, backbone=args.network,
                  queue_size=args.anchors, views=replace(STRONG, blur=STRONG.blur * args.blur), projector=(256, 128),
                  predictor=(256,), batch_norm_splits=int(os.environ.get("WORLD_SIZE", 1)))


def our_turn(args: argparse.Namespace, images: Tensor) -> Callable[[], float]:
    state = prepare_training(our_recipe(args), ImageSet(images), args.device)
    stream = batches(state)

    def turn() -> float:
        for count in (2, args.steps):
            start = time.perf_counter()
            for _ in range(count):
                train_step(state, *next(stream))
            synchronize(args.device)
        return (time.perf_counter() - start) / (args.steps * args.batch)
    return turn


def plain_turn(args: argparse.Namespace, images: Tensor) -> Callable[[], float]:
    recipe = our_recipe(args)
    step = PlainStep(BackboneConfig(args.network, 3, recipe.width), recipe.projector, args.anchors, args.device)
    return loader_turn(step, TwoViews(images, plain_transform(32, args.blur)), args)


def lightly_turn(args: argparse.Namespace, images: Tensor) -> Callable[[], float]:
    from lightly.transforms import MoCoV2Transform

    recipe = our_recipe(args)
    step = LightlyStep(BackboneConfig(args.network, 3, recipe.width), recipe.projector, args.anchors, args.device)
    transform = MoCoV2Transform(32, gaussian_blur=STRONG.blur * args.blur, sigmas=STRONG.blur_sigma)
    return loader_turn(step, LightlyViews(images, transform), args)


def tuned_turn(args: argparse.Namespace, images: Tensor) -> Callable[[], float]:
    recipe, half = our_recipe(args), torch.full((3, 1, 1), 0.5)
    backbone, dims = build_backbone(BackboneConfig(args.network, 3, recipe.width)), recipe.projector
    encoder = nn.Sequential(backbone, mlp(backbone.num_features, *dims))
    step = TunedStep(encoder, mlp(dims[1], *recipe.predictor, dims[1]), dims[1], args.anchors,
                     temperatures=(recipe.student_temperature, recipe.teacher_temperature))
    views = TunedViews(recipe.views, 32, half, half / 2)
    training = TunedTraining(step, images, (views, views), args.batch)

    def turn() -> float:
        for count in (2, args.steps):
            start = time.perf_counter()
            for _ in range(count):
                training()
        return (time.perf_counter() - start) / (args.steps * args.batch)
    return turn


MAKERS = dict(ours=our_turn, tuned=tuned_turn, plain=plain_turn, lightly=lightly_turn)


def start(name: str, args: argparse.Namespace, processes: int = 1) -> Callable[[], float]:
    """The turn of a contestant that lives in a process of its own, or in several that share its batch.

    They wait between their turns. The time is that of the first one's clock.
    """
    shared = [{}] if processes == 1 else [
        dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes),
             OMP_NUM_THREADS=str(max(1, os.cpu_count() // processes)), RANK=str(i), LOCAL_RANK=str(i))
        for port in [str(free_port())] for i in range(processes)]
    command = [sys.executable, __file__, "--contestant", name, f"--network={args.network}", f"--device={args.device}",
               f"--batch={args.batch}", f"--anchors={args.anchors}", f"--images={args.images}",
               f"--workers={args.workers}", f"--steps={args.steps}", *(["--blur"] if args.blur else [])]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    children = [subprocess.Popen(command, **pipes, env=os.environ | more) for more in shared]

    def turn() -> float:
        try:
            for child in children:
                print("go", file=child.stdin, flush=True)
            first, *_ = [float(child.stdout.readline()) for child in children]
        except (BrokenPipeError, ValueError):
            raise SystemExit(f"the process of {name!r} ended; what it said is above") from None
        return first
    return turn


def answer_turns(args: argparse.Namespace) -> None:
    """In such a process: a turn for every line, until the input ends."""
    turn = MAKERS[args.contestant](args, made_up_images(args.images))
    for _ in sys.stdin:
        print(turn(), flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def seconds_worked(process: psutil.Process) -> float:
    """Processor time of a process; 0 of one that has ended since it was listed."""
    try:
        return sum(process.cpu_times()[:2])
    except psutil.NoSuchProcess:
        return 0.0


def settle(patience: float = 30.0) -> None:
    """Wait until this process's children are idle: workers go on loading ahead when their turn is over."""
    def worked() -> float:  # seconds of processor time, all together
        return sum(map(seconds_worked, psutil.Process().children(recursive=True)))

    start, before = time.monotonic(), worked()
    while time.monotonic() < start + patience:
        time.sleep(0.3)
        now = worked()
        if now - before < 0.015:  # a twentieth of the time
            return
        before = now
    print(f"note: worker processes are still busy after {patience:g} seconds; the next turn is measured beside them")


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(args: argparse.Namespace) -> dict:
    """Medians of images a second and of the ratios, over rounds in which everybody has a turn."""
    turns = {"ours": start("ours", args)}
    if args.device == "cpu" and args.processes > 1:
        turns[f"ours in {args.processes} processes"] = start("ours", args, args.processes)
    if args.device == "cpu":
        turns["tuned"] = start("tuned", args)
    turns["plain"] = start("plain", args)
    if find_spec("lightly"):
        turns["lightly"] = start("lightly", args)
    else:
        print("lightly is not installed and does not take part (pip install lightly)")
    rounds = []
    for _ in range(args.repeats + 1):
        rounds.append({})
        for name, turn in turns.items():
            settle()
            rounds[-1][name] = turn()
        print("  ".join(f"{name} {1 / s:,.0f}/s" for name, s in rounds[-1].items()), flush=True)
    rounds = rounds[1:]  # the first warms up
    ours = [name for name in turns if name.startswith("ours")]
    return {name: dict(images_per_second=round(1 / statistics.median(r[name] for r in rounds)),
                       ratio=round(statistics.median(r[name] / r["ours"] for r in rounds), 2),
                       ratios={base: [round(r[name] / r[base], 2) for r in rounds] for base in ours}) for name in turns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--network", default="tiny", help="tiny (five layers from width 16), resnet18")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--anchors", type=int, default=16_384)
    parser.add_argument("--blur", action="store_true", help="the authors' strong views: half of them blurred")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2, help="of the second form of ours, on a CPU")
    parser.add_argument("--steps", type=int, default=16, help="steps in each turn")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count")
    parser.add_argument("--contestant", choices=MAKERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        return answer_turns(args)
    results = measure(args)
    bases = list(results["ours"]["ratios"])
    print(f"{'':20}{'images/s':>10}" + "".join(f"{'slower than ' + base:>36}" for base in bases))
    for name, row in results.items():
        ratios = "".join(f"{statistics.median(row['ratios'][base]):>36.2f}" for base in bases)
        print(f"{name:20}{row['images_per_second']:>10,}{ratios}")
    if args.json:
        settings = about("step", batch=args.batch, anchors=args.anchors, blur=args.blur, network=args.network,
                         device=args.device, workers=args.workers, rounds=args.repeats,
                         precision=str(pick_precision("auto", torch.device(args.device))))
        args.json.write_text(json.dumps(settings | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
