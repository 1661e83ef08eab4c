"""Does the fast form learn as well as the plain one?

    python benchmarks/equivalence.py [--json FILE] [--seeds 0 1 2] [--images 60000] [--forms fast plain]
    python benchmarks/equivalence.py --recipe cifar10_small --forms fast exact_loss

A recipe, cut short, once in each form for every seed, from the same weights and in the same order of images:

* `fast`: `isd_nb.engine.training.train`, as `isd_train` runs it: views of the whole batch as matrices, channels_last,
  bfloat16 where the processor has it, the streaming loss, the foreach moving average;
* `plain`: one image at a time through Pillow and torchvision with the same random numbers, float32, the default memory
  layout, the full batch-by-queue matrix, a loop over parameters (recipes of grey images only);
* `exact_loss`: as `fast`, but the loss reads the queue in single precision (recipes whose queue is read in bfloat16).

All are scored by 20-NN with the teacher's features on held-out images (the bank: up to 10,000 training images, evenly
spread), after each quarter. Labels choose nothing. Differences of a seed are compared with the spread over seeds.
"""
import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from common import about
from PIL import Image
from torch import Tensor

from isd_nb.data import ImageSet, subsample_evenly
from isd_nb.sources.door import load_images
from isd_nb.evaluation import embed, knn_accuracy
from isd_nb.isd import ISD
from isd_nb.loss import soft_label_loss
from isd_nb.engine.training import train
from isd_nb.methods.building import build_method, make_optimizer
from isd_nb.recipe import Recipe, find_recipe, learning_rate
from isd_nb.sources.batches import EpochSampler, seeded
from isd_nb.views import AugmentParams, random_draw

QUARTERS = 4


def plain_view(picture: Image.Image, draw: AugmentParams, i: int, size: int) -> Tensor:  # float (C, size, size)
    "What the draw says about image `i`, by Pillow and torchvision; crops are rounded to whole pixels."
    box = [round(float(side[i])) for side in (draw.top, draw.left, draw.height, draw.width)]
    picture = tv.resized_crop(picture, *box[:2], max(1, box[2]), max(1, box[3]), [size, size], antialias=True)
    if draw.flip is not None and draw.flip[i]:
        picture = tv.horizontal_flip(picture)
    if draw.angle is not None:
        picture = tv.rotate(picture, float(draw.angle[i]), tv.InterpolationMode.BILINEAR)
    change = dict(brightness=tv.adjust_brightness, contrast=tv.adjust_contrast)
    for name in draw.order:
        if name in change and getattr(draw, name) is not None:
            picture = change[name](picture, float(getattr(draw, name)[i]))
    return tv.to_dtype(tv.to_image(picture), torch.float32, scale=True)


def plain_views(pictures: list[Image.Image], recipe: Recipe, number: int, step: int) -> Tensor:  # (B, C, S, S)
    "One kind of view of a batch, from the random numbers that the fast form uses."
    kind = recipe.key_views if number and recipe.key_views else recipe.views
    width, height = pictures[0].size
    draw = random_draw(kind, len(pictures), height, width, seeded(recipe.seed, 1 + number, step))
    if any(getattr(draw, name) is not None for name in ("saturation", "hue", "grey", "sigma", "seed")):
        raise SystemExit("the plain form knows crop, flip, rotation, brightness and contrast only")
    return torch.stack([plain_view(picture, draw, i, recipe.image_size) for i, picture in enumerate(pictures)])


def plain_step(method: ISD, optimizer: torch.optim.Optimizer, view_q: Tensor, view_k: Tensor) -> None:
    "ISD in the usual words."
    queries = F.normalize(method.predictor(method.student(view_q)), dim=1)
    with torch.no_grad():
        keys = F.normalize(method.teacher.module(view_k), dim=1)
    temperatures = method.student_temperature, method.teacher_temperature
    loss = soft_label_loss(queries, keys, method.queue.anchors.clone(), *temperatures)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for mine, theirs in zip(method.teacher.module.parameters(), method.student.parameters(), strict=True):
        mine.data.mul_(method.teacher.momentum).add_(theirs.data, alpha=1 - method.teacher.momentum)
    method.queue.enqueue(keys)


def train_plain(recipe: Recipe, images: ImageSet, score: Callable[[ISD], float]) -> list[float]:
    "The scores after each quarter."
    method = build_method(recipe, images).train()
    optimizer, scores = make_optimizer(recipe, method), [score(method)]
    pictures = [tv.to_pil_image(image) for image in images.images]
    for step, indices in enumerate(EpochSampler(len(images), recipe.batch_size, recipe.seed, stop=recipe.steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, recipe.steps)
        method.schedule(step / recipe.steps)
        batch = [pictures[i] for i in indices.tolist()]
        plain_step(method, optimizer, *(plain_views(batch, recipe, number, step) for number in range(2)))
        if (step + 1) * QUARTERS // recipe.steps > step * QUARTERS // recipe.steps:
            scores.append(score(method))
    return scores


def train_fast(recipe: Recipe, images: ImageSet, score: Callable[[ISD], float]) -> list[float]:
    "The same, by `isd_nb.engine.training.train`."
    scores = []
    def evaluate(method: ISD) -> dict[str, float]:
        scores.append(score(method))
        return {}

    with tempfile.TemporaryDirectory() as folder:
        train(recipe, images, Path(folder) / "run", evaluate, device="cpu", show=False)
    return scores


def train_with_exact_loss(recipe: Recipe, images: ImageSet, score: Callable[[ISD], float]) -> list[float]:
    "As `train_fast`, with all products of the loss in single precision."
    with patch("isd_nb.isd.product_precision", lambda *given: torch.float32):
        return train_fast(recipe, images, score)


FORMS = dict(fast=train_fast, plain=train_plain, exact_loss=train_with_exact_loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--data", help="in place of the recipe's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=60_000, help="images seen in each training")
    parser.add_argument("--forms", nargs=2, choices=FORMS, default=["fast", "plain"])
    args = parser.parse_args()
    recipe = find_recipe(args.recipe)
    train_images, test_images = load_images(args.data or recipe.data, recipe.image_size)
    bank, probe = subsample_evenly(train_images, 10_000), test_images
    recipe = replace(recipe, epochs=None, steps=max(QUARTERS, args.images // recipe.batch_size), evaluations=QUARTERS)

    def score(method: ISD) -> float:
        features = [embed(method.encoders()["teacher"], images, device="cpu") for images in (bank, probe)]
        return knn_accuracy(features[0], bank.labels, features[1], probe.labels)

    runs = {name: {} for name in args.forms}
    for seed in args.seeds:
        for name in args.forms:
            start = time.perf_counter()
            scores = FORMS[name](replace(recipe, seed=seed), train_images, score)
            runs[name][str(seed)] = [round(value, 4) for value in scores]
            print(f"seed {seed}  {name:10} {runs[name][str(seed)]}  {time.perf_counter() - start:.0f} s", flush=True)
    last = [[scores[-1] for scores in found.values()] for found in runs.values()]
    differences = [a - b for a, b in zip(*last, strict=True)]
    deviation = {name: round(statistics.stdev(values), 4) if len(values) > 1 else None
                 for name, values in zip(runs, last, strict=True)}
    print(f"{' minus '.join(runs)}, 20-NN of the teacher: mean {statistics.mean(differences):+.4f}, "
          f"by seed {[f'{d:+.4f}' for d in differences]}; standard deviation over seeds {deviation}")
    if args.json:
        settings = about("equivalence", recipe=args.recipe, steps=recipe.steps, batch=recipe.batch_size)
        result = dict(knn20_teacher=runs, difference=[round(d, 4) for d in differences], deviation_over_seeds=deviation)
        args.json.write_text(json.dumps(settings | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
