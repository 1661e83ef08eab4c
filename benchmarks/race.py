"""Seconds to an accuracy: ours, a tuned peer, the plain pipeline and lightly's parts, on the same network and images.

    python benchmarks/race.py [--json FILE] [--data digits|cifar10] [--folder DIR] [--neighbours 0]

Each contestant trains in a process of its own with the recipe's network, images, views, batch, anchors, learning rate
and schedule; after every `--every` steps its clocks stand still while the teacher's 20-NN accuracy is measured, by the
same function for all. Both clocks are kept: wall seconds and the processor seconds of the process and its workers.
Building, the first step (on a copy that is thrown away) and starting workers are not counted. What worker processes
have made ready meanwhile is thrown away before the clocks go on.

* `ours`: `isd_nb.engine.state.train_step` with threads chosen while training, as `isd_train` runs it.
* `tuned`: `peer.py`, the same in public parts as an expert would write it.
* `plain`: torchvision views of PIL images in two worker processes, float32, full matrix, as in `step.py`.
* `lightly`: that loop with lightly's loss and memory bank, MoCo v2 only; left out where lightly is not installed.

A mark is reached at the first evaluation at or above it. Ratios are of the highest mark that every contestant of a
method reaches in every seed, if it lies above the accuracy of the untrained networks. Threads are each contestant's
own default; beside busy processes two OpenMP threads wait for each other, so race once more with OMP_NUM_THREADS=1.
Beside them stand the ratios of the seconds of all steps: a mark is chosen afterwards, and one evaluation decides it.
What FILE already holds of the same settings is not run again; after `--minutes` nothing new is started, the exit code
is 1, and the same command goes on. `--anew` runs all again into FILE.new, which takes FILE's place when it is complete.
`--summary` sums up FILE's runs anew and trains nothing.
"""
from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as tv
from PIL import Image
from common import about
from step import PlainStep, TwoViews, blurred
from threads import neighbours
from torch import Tensor, nn
from torch.utils.data import DataLoader
from peer import TunedStep, TunedTraining, TunedViews, Tuning

from isd_nb.data import ImageSet, subsample_evenly
from isd_nb.encoders import Encoder, build_backbone, channel_statistics, mlp, split_batch_norm
from isd_nb.engine.state import prepare_training, train_step
from isd_nb.engine.threads import ThreadChoice
from isd_nb.engine.training import batches
from isd_nb.methods.building import backbone_config, find_method
from isd_nb.protocols.scorer import score_encoders
from isd_nb.protocols.storage import in_one_piece
from isd_nb.recipe import Recipe, find_recipe, learning_rate, recipe_to_json
from isd_nb.sources.door import Sets, load_sets
from isd_nb.teacher import cosine_momentum
from isd_nb.views import ViewRecipe

MARKS = [0.5, 0.6, 0.7, 0.75, 0.8, 0.825, 0.85, 0.875, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97]
RECIPES = dict(digits="digits", cifar10="cifar10_small")
TUNING = Tuning()


def race_recipe(method: str, data: str, steps: int, seed: int, folder: str | None) -> Recipe:
    """The recipe of a set, for one of the two methods, cut to so many steps with its whole schedule."""
    recipe = find_recipe(RECIPES[data])
    changes = find_method(method).recipe_changes if method != "isd" else {}  # MoCo v2's temperature among them
    spec = f"folder:{folder}" if data == "cifar10" and folder else recipe.data
    return replace(recipe, method=method, data=spec, steps=steps, epochs=None, seed=seed, **changes)


def sets_of(recipe: Recipe) -> Sets:
    return load_sets(recipe.data, recipe.image_size)


@dataclass
class Contestant:
    """A training that a clock can be held beside: `advance` does step number n, `teacher` is what is evaluated."""
    advance: Callable[[int], None]
    teacher: Callable[[], nn.Module]
    drop_ahead: Callable[[], None] = lambda: None  # what workers may have made ready while the clocks stood still


def networks(recipe: Recipe, images: ImageSet) -> tuple[nn.Module, nn.Module, nn.Module, Tensor, Tensor]:
    """Backbone, projector and predictor of a recipe, and mean and standard deviation of the channels."""
    backbone = build_backbone(backbone_config(recipe, images.shape[0]))
    dim = recipe.projector[-1]
    projector = mlp(backbone.num_features, *recipe.projector)
    predictor = mlp(dim, *recipe.predictor, dim) if recipe.predictor and recipe.method == "isd" else nn.Identity()
    parts = (split_batch_norm(part, recipe.batch_norm_splits) for part in (backbone, projector, predictor))
    return *parts, *channel_statistics(images.images)


def evaluated(backbone: nn.Module, mean: Tensor, std: Tensor) -> Encoder:
    """The backbone as evaluation takes it: images in [0, 1]."""
    return Encoder(backbone, mean, std)


def scheduled(step: TunedStep | PlainStep, recipe: Recipe, number: int) -> None:
    for group in step.optimizer.param_groups:
        group["lr"] = learning_rate(recipe, number, recipe.steps)
    step.momentum = cosine_momentum(*recipe.momentum, number / recipe.steps)


def ours(recipe: Recipe, images: ImageSet) -> Contestant:
    warm = prepare_training(replace(recipe, steps=2), images, "cpu")
    train_step(warm, *next(batches(warm)))
    state = prepare_training(recipe, images, "cpu")
    state.threads = ThreadChoice(None)
    stream = batches(state)

    def advance(number: int) -> None:
        with state.threads.step():
            train_step(state, *next(stream))
    return Contestant(advance, lambda: state.method.encoders()["teacher"])


def tuned_contestant(recipe: Recipe, images: ImageSet, tuning: Tuning = TUNING) -> tuple[TunedTraining, Callable]:
    """The peer on a recipe, and what gives its teacher for evaluation."""
    backbone, projector, predictor, mean, std = networks(recipe, images)
    step = TunedStep(nn.Sequential(backbone, projector), predictor, recipe.projector[-1], recipe.queue_size,
                     recipe.method, (recipe.student_temperature, recipe.teacher_temperature),
                     recipe.batch_norm_splits > 1, tuning)
    for group, decay in zip(step.optimizer.param_groups, (recipe.weight_decay, 0.0)):
        group["weight_decay"] = decay
    views = [TunedViews(v, recipe.image_size, mean, std) for v in (recipe.views, recipe.key_views or recipe.views)]
    training = TunedTraining(step, images.images, tuple(views), recipe.batch_size, tuning)
    return training, lambda: evaluated(step.teacher[0], mean, std)


def tuned_training(method: str, seed: int, tuning: Tuning) -> TunedTraining:
    """For `tuned.py`: the peer on digits."""
    torch.manual_seed(seed)
    recipe = race_recipe(method, "digits", 1000, seed, None)
    return tuned_contestant(recipe, sets_of(recipe).train, tuning)[0]


def tuned(recipe: Recipe, images: ImageSet) -> Contestant:
    warm, _ = tuned_contestant(recipe, images)
    warm()
    training, teacher = tuned_contestant(recipe, images)

    def advance(number: int) -> None:
        scheduled(training.step, recipe, number)
        training()
    return Contestant(advance, teacher)


class WideCrop:
    """torchvision's RandomResizedCrop for crops that may be larger than the image; it then lies in them, on black."""

    def __init__(self, size: int, views: ViewRecipe) -> None:
        self.size, self.scale = size, views.crop_scale
        self.ratio = tuple(math.log(r) for r in views.crop_ratio)

    def box(self, wide: int, high: int) -> tuple[int, int]:  # height and width, at the tenth trial as they come
        for _ in range(10):
            area, ratio = random.uniform(*self.scale) * wide * high, math.exp(random.uniform(*self.ratio))
            box = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
            longest = max(1.0, self.scale[1]) ** 0.5
            if box[0] <= high * longest and box[1] <= wide * longest:
                break
        return box

    def __call__(self, picture: Image.Image) -> Image.Image:
        wide, high = picture.size
        box = self.box(wide, high)
        top, left = (random.randint(*sorted((0, room))) for room in (high - box[0], wide - box[1]))
        return tv.functional.resized_crop(picture, top, left, *box, [self.size, self.size], antialias=True)


def plain_views(views: ViewRecipe, size: int, channels: int, mean: Tensor, std: Tensor) -> tv.Compose:
    """The recipe's views in torchvision's words, for one PIL image, in the order of ours."""
    colour = (views.brightness, views.contrast, *([views.saturation, views.hue] if channels == 3 else []))
    crop = tv.RandomResizedCrop(size, views.crop_scale, views.crop_ratio, antialias=True)
    return tv.Compose([
        WideCrop(size, views) if views.crop_scale[1] > 1 else crop,
        *([tv.RandomRotation(views.rotation, tv.InterpolationMode.BILINEAR)] if views.rotation else []),
        tv.RandomApply([tv.ColorJitter(*colour)], views.jitter),
        *([tv.RandomGrayscale(views.grey)] if views.grey and channels == 3 else []),
        *([tv.RandomApply([tv.Lambda(blurred)], views.blur)] if views.blur else []),
        tv.RandomHorizontalFlip(views.flip), tv.ToImage(), tv.ToDtype(torch.float32, scale=True),
        tv.Normalize(mean.flatten().tolist(), std.flatten().tolist())])


class PlainRace(PlainStep):
    """The plain step with a recipe's network, temperatures and optimiser, as ISD or MoCo v2."""

    def __init__(self, recipe: Recipe, images: ImageSet) -> None:
        backbone, projector, self.predictor, self.mean, self.std = networks(recipe, images)
        self.student = nn.Sequential(backbone, projector)
        teacher_backbone, teacher_projector, *_ = networks(recipe, images)
        self.teacher = nn.Sequential(teacher_backbone, teacher_projector)
        self.teacher.load_state_dict(self.student.state_dict())
        self.queue, self.place = F.normalize(torch.randn(recipe.queue_size, recipe.projector[-1]), dim=1), 0
        self.recipe, self.momentum = recipe, recipe.momentum[0]
        learns = [*self.student.parameters(), *self.predictor.parameters()]
        groups = [dict(params=[p for p in learns if p.ndim > 1], weight_decay=recipe.weight_decay),
                  dict(params=[p for p in learns if p.ndim <= 1], weight_decay=0.0)]
        self.optimizer = torch.optim.SGD(groups, recipe.learning_rate, momentum=0.9, nesterov=True)

    def compare(self, view_q: Tensor, view_k: Tensor) -> tuple[Tensor, Tensor]:
        queries = F.normalize(self.predictor(self.student(view_q)), dim=1)
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), self.student.parameters()):
                mine.data.mul_(self.momentum).add_(theirs.data, alpha=1 - self.momentum)
            order = torch.randperm(len(view_k))
            keys = F.normalize(self.teacher(view_k[order]), dim=1)[order.argsort()]
        return queries, keys

    def loss(self, queries: Tensor, keys: Tensor) -> Tensor:
        anchors, recipe = self.queue.clone().detach(), self.recipe
        if recipe.method == "moco_v2":
            logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ anchors.T], 1)
            return F.cross_entropy(logits / recipe.student_temperature, torch.zeros(len(logits), dtype=torch.long))
        labels = (keys @ anchors.T / recipe.teacher_temperature).softmax(1)
        student = (queries @ anchors.T / recipe.student_temperature).log_softmax(1)
        return F.kl_div(student, labels, reduction="batchmean")

    def enqueue(self, keys: Tensor) -> None:
        places = torch.arange(self.place, self.place + len(keys)) % len(self.queue)
        self.queue[places] = keys
        self.place = (self.place + len(keys)) % len(self.queue)


class LightlyRace(PlainRace):
    """The same with lightly's contrastive loss and memory bank."""

    def __init__(self, recipe: Recipe, images: ImageSet) -> None:
        from lightly.loss import NTXentLoss

        super().__init__(recipe, images)
        self.criterion = NTXentLoss(recipe.student_temperature, memory_bank_size=tuple(self.queue.shape))

    def loss(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.criterion(queries, keys)

    def enqueue(self, keys: Tensor) -> None:
        """The criterion did it."""


class TwoKinds(TwoViews):
    """PIL images, and two views of each by two transforms."""

    def __init__(self, images: Tensor, transforms: tuple[Callable, Callable]) -> None:
        super().__init__(images, None)
        self.transforms = transforms

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return tuple(make(self.pictures[index]) for make in self.transforms)


def looped(kind: type[PlainRace], workers: int = 2) -> Callable[[Recipe, ImageSet], Contestant]:
    """A contestant of the plain loop: worker processes, which stay from epoch to epoch."""
    def make(recipe: Recipe, images: ImageSet) -> Contestant:
        step = kind(recipe, images)
        pair = tuple(plain_views(v, recipe.image_size, images.shape[0], step.mean, step.std)
                     for v in (recipe.views, recipe.key_views or recipe.views))
        loader = DataLoader(TwoKinds(images.images, pair), recipe.batch_size, shuffle=True, drop_last=True,
                            num_workers=workers, persistent_workers=True)
        kind(recipe, images)(*next(iter(loader)))  # warm up a copy; the workers start

        def forever() -> Iterator[list[Tensor]]:
            while True:
                yield from loader
        stream = forever()

        def advance(number: int) -> None:
            scheduled(step, recipe, number)
            step(*next(stream))

        def drop_ahead() -> None:
            for _ in range(2 * workers):  # PyTorch's own number of batches that each is ahead
                next(stream)
        return Contestant(advance, lambda: evaluated(step.teacher[0], step.mean, step.std), drop_ahead)
    return make


MAKERS = dict(ours=ours, tuned=tuned, plain=looped(PlainRace), lightly=looped(LightlyRace))


def processor_seconds() -> float:
    """Of this process and those it has started, so far."""
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in [me, *me.children(recursive=True)])


def run_one(name: str, recipe: Recipe, every: int) -> list[dict[str, float]]:
    """Train, and evaluate with both clocks stopped; a row for every evaluation, the first before training."""
    torch.manual_seed(recipe.seed)
    sets = sets_of(recipe)
    bank, probe = subsample_evenly(sets.bank, 10_000), subsample_evenly(sets.test, 2_000)
    contestant, rows, wall, worked = MAKERS[name](recipe, sets.train), [], 0.0, 0.0
    for end in [*range(0, recipe.steps, every), recipe.steps]:
        begun, before = time.perf_counter(), processor_seconds()
        for number in range(rows[-1]["step"] if rows else 0, end):
            contestant.advance(number)
        wall, worked = wall + time.perf_counter() - begun, worked + processor_seconds() - before
        threads = torch.get_num_threads()
        found = score_encoders({"teacher": contestant.teacher()}, bank, probe, linear=False)["teacher"]["knn20"]
        contestant.drop_ahead()
        rows.append(dict(step=end, images=end * recipe.batch_size, seconds=round(wall, 3),
                         processor_seconds=round(worked, 3), knn20=found))
        line = f"{name} {recipe.method} step {end}: {wall:.1f} s, {found:.3f}, {threads} threads"
        print(line, file=sys.stderr, flush=True)
    return rows


def reached(rows: list[dict[str, float]], mark: float, clock: str = "seconds") -> float | None:
    """When a curve was first at the mark; None if never."""
    return next((row[clock] for row in rows if row["knn20"] >= mark), None)


def ratios(runs: list[dict], value: Callable[[list[dict]], float]) -> dict[str, dict[int, float]]:
    """By contestant and seed, a value of its rows over that of ours at the same seed."""
    values = {(run["contestant"], run["seed"]): value(run["rows"]) for run in runs}
    found: dict[str, dict[int, float]] = {}
    for (name, seed), mine in values.items():
        if own := values.get(("ours", seed)):
            found.setdefault(name, {})[seed] = round(mine / own, 2)
    return found


def medians(runs: list[dict], value: Callable[[list[dict]], float]) -> dict[str, float]:
    """By contestant, the median over its runs of a value of their rows."""
    names = dict.fromkeys(run["contestant"] for run in runs)
    return {name: statistics.median(value(run["rows"]) for run in runs if run["contestant"] == name) for name in names}


def over_seeds(found: dict[str, dict[int, float]]) -> dict[str, float]:
    """By contestant, the median of its seeds' ratios."""
    return {name: round(statistics.median(by_seed.values()), 2) for name, by_seed in found.items()}


def summary(runs: list[dict]) -> dict[str, dict]:
    """By method: the highest mark, above the untrained nets, that all reach in all seeds; both clocks, medians.

    The mark is chosen when all curves are known, on their plateau, where one evaluation decides. So the ratios of the
    seconds of all steps stand beside its own, both by seed, too."""
    found = {}
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run for run in runs if run["method"] == method]
        untrained = max(run["rows"][0]["knn20"] for run in mine)
        shared = [m for m in MARKS if m > untrained and all(reached(run["rows"], m) is not None for run in mine)]
        if not shared:
            continue
        mark = shared[-1]
        wall = medians(mine, lambda rows: reached(rows, mark))  # noqa: B023 (used at once)
        worked = medians(mine, lambda rows: reached(rows, mark, "processor_seconds"))  # noqa: B023
        to_mark = ratios(mine, lambda rows: reached(rows, mark))  # noqa: B023
        all_steps = ratios(mine, lambda rows: rows[-1]["seconds"])
        found[method] = dict(
            mark=mark, seconds=wall, processor_seconds=worked, slower_than_ours=over_seeds(to_mark),
            slower_by_seed=to_mark, slower_per_step=over_seeds(all_steps), slower_per_step_by_seed=all_steps,
            last_knn20=medians(mine, lambda rows: rows[-1]["knn20"]))
    return found


def takes_part(name: str, method: str) -> bool:
    """lightly has no ISD, and may not be installed."""
    return name != "lightly" or (method == "moco_v2" and find_spec("lightly") is not None)


def one_run(args: argparse.Namespace, method: str, name: str, seed: int) -> list[dict[str, float]]:
    """The rows of a contestant, from a process of its own, beside busy neighbours where they are wanted."""
    command = [sys.executable, __file__, "--one", name, "--methods", method, "--data", args.data,
               "--first-seed", str(seed), "--steps", str(args.steps), "--every", str(args.every),
               *(["--folder", args.folder] if args.folder else [])]
    with neighbours(args.neighbours):
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def race(args: argparse.Namespace, save: Callable[[list[dict]], None], runs: list[dict]) -> bool:
    """Add what is missing, seed by seed, so that contestants take turns; save after each. False: time is over."""
    begun = time.monotonic()
    done = {(run["method"], run["contestant"], run["seed"]) for run in runs}
    order = itertools.product(range(args.seeds), args.methods, args.contestants)
    for seed, method, name in order:
        if not takes_part(name, method) or (method, name, seed) in done:
            continue
        if time.monotonic() - begun > 60 * args.minutes:
            return False
        load = os.getloadavg()[0]
        rows = one_run(args, method, name, seed)
        runs.append(dict(method=method, contestant=name, seed=seed, load_before=load, rows=rows))
        save(runs)
    return True


def recipes(args: argparse.Namespace) -> str:
    """A fingerprint of what the contestants train: other recipes are another race."""
    asked = [recipe_to_json(race_recipe(method, args.data, args.steps, 0, None)) for method in args.methods]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


def earlier_runs(file: Path | None, settings: dict[str, Any]) -> list[dict]:
    """What a file holds already; a file of other settings is left alone."""
    if not file or not file.exists():
        return []
    before = json.loads(file.read_text())
    if other := [f"{key} {before.get(key)}" for key, value in settings.items() if before.get(key) != value]:
        sys.exit(f"{file} holds a race of other settings ({', '.join(other)}); give another --json FILE or remove it")
    return before["runs"]


def print_summary(found: dict[str, dict], data: str) -> None:
    """Seconds to the mark, and both ratios."""
    for method, row in found.items():
        print(f"{method}: 20-NN {row['mark']} on {data}")
        for name, seconds in row["seconds"].items():
            slower = [f"   {row[key][name]:5.2f}x ours {what}" for key, what in
                      (("slower_than_ours", "to the mark"), ("slower_per_step", "per step")) if name in row[key]]
            print(f"  {name:8}{seconds:8.1f} s{row['processor_seconds'][name]:8.1f} processor s{''.join(slower)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="results; resumed where it exists")
    parser.add_argument("--data", choices=RECIPES, default="digits")
    parser.add_argument("--folder", help="of CIFAR-10's images, train/CLASS/... and test/CLASS/...")
    parser.add_argument("--methods", nargs="+", default=["isd", "moco_v2"], choices=["isd", "moco_v2"])
    parser.add_argument("--contestants", nargs="+", default=list(MAKERS), choices=list(MAKERS))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50, help="steps between evaluations")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--neighbours", type=int, default=0, help="busy processes beside each, same priority")
    parser.add_argument("--minutes", type=float, default=3.5, help="start nothing new after this time")
    parser.add_argument("--anew", action="store_true", help="run all again, beside the file until complete")
    parser.add_argument("--summary", action="store_true", help="sum up the file's runs anew; train nothing")
    parser.add_argument("--one", choices=MAKERS, help=argparse.SUPPRESS)
    parser.add_argument("--first-seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        recipe = race_recipe(args.methods[0], args.data, args.steps, args.first_seed, args.folder)
        return print(json.dumps(run_one(args.one, recipe, args.every)))
    if args.summary and not args.json:
        parser.error("--summary needs --json FILE")
    if args.summary:
        saved = json.loads(args.json.read_text())
        saved["summary"] = summary(saved["runs"])
        args.json.write_text(json.dumps(saved) + "\n")
        return print_summary(saved["summary"], saved["data"])
    settings = dict(data=args.data, steps=args.steps, every=args.every, neighbours=args.neighbours)
    settings |= dict(recipes=recipes(args))
    same = settings | dict(threads=torch.get_num_threads(), torch=torch.__version__)
    file = args.json.with_name(f"{args.json.name}.new") if args.json and args.anew else args.json
    runs = earlier_runs(file, same)

    def save(runs: list[dict]) -> None:
        if file:
            found = about("race", **settings, seeds=args.seeds, priority=os.nice(0), summary=summary(runs), runs=runs)
            found["command"] = found["command"].replace(" --anew", "")
            with in_one_piece(file) as unfinished:
                unfinished.write_text(json.dumps(found) + "\n")
    complete = race(args, save, runs)
    print_summary(summary(runs), args.data)
    if not complete:
        sys.exit(f"{args.minutes:g} minutes are over; the same command goes on")
    if file and file != args.json and file.exists():
        file.replace(args.json)


if __name__ == "__main__":
    main()
