"""How fast are strong views? Ours on a batch, against torchvision image by image and kornia.

    python benchmarks/views.py [--json FILE]

Every contestant makes the authors' strong view (crop, flip, jitter, grey, blur) of the same uint8 images. All of them
take turns, `--repeats` times after one round to warm up; a ratio is the median over the rounds of (their seconds per
image / our seconds per image), so that a machine which is busy with something else disturbs both sides of a ratio.
The contestants that take whole batches get two threads (`--threads`), the others two worker processes. As in a training
on a CPU, memory that is freed is kept. On a busy machine, where threads wait for each other, `--threads 1` says more.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
import torchvision.transforms.v2 as tv
from common import about
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from isd_nb.engine.scale import keep_freed_memory
from isd_nb.kernels.view_transforms import blur_reach
from isd_nb.views import STRONG, Views

COLOURS = (STRONG.brightness, STRONG.contrast, STRONG.saturation, STRONG.hue)


class Pictures(Dataset):
    """Images and a transform, as most training scripts have it."""

    def __init__(self, images: list, transform: Callable) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])


def torchvision_transform(size: int, blur: bool) -> tv.Compose:
    """The authors' strong view, for one image: Pillow or a uint8 tensor."""
    steps = [tv.RandomResizedCrop(size, STRONG.crop_scale, STRONG.crop_ratio, antialias=True),
             tv.RandomApply([tv.ColorJitter(*COLOURS)], STRONG.jitter), tv.RandomGrayscale(STRONG.grey)]
    if blur:
        steps.append(tv.RandomApply([tv.GaussianBlur(2 * blur_reach(size) + 1, STRONG.blur_sigma)], STRONG.blur))
    return tv.Compose([*steps, tv.RandomHorizontalFlip(STRONG.flip), tv.ToImage(),
                       tv.ToDtype(torch.float32, scale=True)])


def kornia_views(size: int, blur: bool) -> Callable[[Tensor], Tensor] | None:
    """The same for a batch, in kornia's words; None where kornia is not installed."""
    try:
        import kornia.augmentation as ka
    except ImportError:
        return None
    taps = 2 * blur_reach(size) + 1
    steps = [ka.RandomResizedCrop((size, size), STRONG.crop_scale, STRONG.crop_ratio),
             ka.RandomHorizontalFlip(STRONG.flip), ka.ColorJitter(*COLOURS, p=STRONG.jitter),
             ka.RandomGrayscale(p=STRONG.grey)]
    if blur:
        steps.append(ka.RandomGaussianBlur((taps, taps), STRONG.blur_sigma, p=STRONG.blur))
    return torch.no_grad()(torch.nn.Sequential(*steps))


def loader_seconds(images: list, transform: Callable, workers: int, batch: int) -> Callable[[], float]:
    """Seconds per image of a DataLoader whose workers are already there (their start is not counted)."""
    loader = DataLoader(Pictures(images, transform), batch, num_workers=workers, persistent_workers=workers > 0)

    def measure() -> float:
        batches = iter(loader)  # wakes the workers
        start = time.perf_counter()
        for _ in batches:
            pass
        return (time.perf_counter() - start) / len(images)
    return measure


def batch_seconds(images: Tensor, views: Callable[[Tensor], Tensor], batch: int) -> Callable[[], float]:
    """Seconds per image of a function that takes whole batches."""
    def measure() -> float:
        start = time.perf_counter()
        for part in images.split(batch):
            views(part)
        return (time.perf_counter() - start) / len(images)
    return measure


def contestants(images: Tensor, size: int, batch: int, blur: bool) -> dict[str, Callable[[], float]]:
    """Everybody who can take part on this machine; each makes one view of every image and says how long one took."""
    views = Views(STRONG if blur else replace(STRONG, blur=0), size)
    generator, transform = torch.Generator().manual_seed(0), torchvision_transform(size, blur)
    pictures = [tv.functional.to_pil_image(image) for image in images]
    found = {"ours, batch": batch_seconds(images, lambda part: views(part, generator), batch),
             "torchvision PIL, 2 workers": loader_seconds(pictures, transform, 2, batch),
             "torchvision tensor, 2 workers": loader_seconds(list(images), transform, 2, batch)}
    kornia = kornia_views(size, blur)
    if kornia is None:
        print("kornia is not installed and does not take part (pip install kornia)")
    else:
        found["kornia, batch"] = batch_seconds(images, lambda part: kornia(part / 255), batch)
    return found


def run(size: int, batch: int, batches: int, repeats: int, blur: bool) -> dict:
    """Let all contestants take turns; medians of images per second, and of the ratios within a round."""
    pixels = torch.rand(batch * batches, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = (torch.nn.functional.interpolate(pixels, size=size, mode="bilinear") * 255).to(torch.uint8)
    measures = contestants(images, size, batch, blur)
    rounds = [{name: measure() for name, measure in measures.items()} for _ in range(repeats + 1)][1:]
    ours = next(iter(measures))
    return dict(size=size, batch=batch, blur=blur, rounds=repeats, images=len(images), results={
        name: dict(images_per_second=round(1 / statistics.median(r[name] for r in rounds)),
                   ratio=round(statistics.median(r[name] / r[ours] for r in rounds), 2)) for name in measures})


def report(result: dict) -> str:
    """One table, for people."""
    lines = [f"{result['size']} x {result['size']} pixels, batch {result['batch']}, "
             f"{'with' if result['blur'] else 'without'} blur, medians of {result['rounds']} rounds",
             f"{'':32}{'images/s':>10}{'ours is faster by':>20}"]
    for name, row in result["results"].items():
        lines.append(f"{name:32}{row['images_per_second']:>10,}{row['ratio']:>20.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--size", type=int, default=32, help="pixels of images and views")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=4, help="batches in each turn")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count")
    parser.add_argument("--threads", type=int, default=2, help="threads of the main process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    results = []
    for blur in (False, True):
        results.append(run(args.size, args.batch, args.batches, args.repeats, blur))
        print(report(results[-1]) + "\n", flush=True)
    if args.json:
        settings = about("views", torchvision=torchvision.__version__)
        args.json.write_text(json.dumps(settings | dict(results=results), indent=1) + "\n")


if __name__ == "__main__":
    main()
