"""The same chance for every method: settings are searched by successive halving, without the test set.

    python benchmarks/search.py --recipe digits --methods isd isd_predictor moco_v2
    python benchmarks/search.py --recipe digits --summary

**The split.** A validation split is held out of the training images: of the digits 260 originals, whose 4 copies
are all on that side; of other sets a tenth of the images. Each class has the same share on both sides. The encoder
and the classifiers see the other images, and a trial is scored on the validation split (of the digits, on all
copies of its originals).

**The score** is the mean of 20-NN and linear accuracy of the encoder that is evaluated: the teacher where there is
one.

**The rule.** Trial 0 is the recipe as it stood when the search began (`START`); the others draw each setting of the
method's space (`SPACES`) at random. All trials are trained for the first budget of `RUNGS`, and the best of them
anew for the second; a tie goes to the smaller number. What wins the last round is chosen. ISD takes part twice,
with the same effort: `isd` has no predictor, `isd_predictor` has one, as published. A symmetric loss is not
searched: it doubles the compute for the same images, and is an ablation.

**The space** is stated below. Learning rate, weight decay, projector, batch norm's parts, crops and rotation are
searched for every method; momentum, temperatures, predictor and options where the method has them. Projectors have
64 to 512 dimensions; of BYOL and SimSiam, which need batch norm inside, all have a hidden layer (`PROJECTORS`). The
network is the same for all.

Every finished trial is a file OUT/RECIPE/METHOD/TRIAL-IMAGES.json and is not repeated. `--summary` writes what was
chosen to OUT/RECIPE/chosen.json, which `isd_compare --settings` reads (but for `isd_predictor`, which is no
method's name).
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiment import (
    RESULTS, about, check_names, chosen_encoder, describe, entry_recipe, found, hold_out, keep, method_of, scores_of,
    trained
)
from isd_nb.engine.launch import one_sentence
from isd_nb.methods.choosing import change_setting
from isd_nb.errors import InputError
from isd_nb.sources.door import load_images
from isd_nb.recipe import Recipe, find_recipe

Rungs = Sequence[tuple[int, int]]  # (images seen by a trial, trials), from the first round to the last
RUNGS: dict[str, Rungs] = {
    "digits": ((62_000, 24), (187_000, 6)),
    "cifar10_small": ((50_000, 6), (150_000, 2)),
}

# Settings of the recipes when the search began, for those that may have changed since.
START_OF_BOTH: dict[str, Any] = dict(
    student_temperature=0.1,
    teacher_temperature=0.04,
    momentum=(0.9, 1.0),
    batch_size=256,
    optimizer="sgd",
    schedule="cosine",
    warmup_steps=0,
    key_views=None,
    options={},
    method="isd",
)
START: dict[str, dict[str, Any]] = {
    "digits": START_OF_BOTH
    | dict(backbone="tiny", width=16, widths=(), projector=(128, 64), predictor=(128,), batch_norm_splits=1)
    | dict(queue_size=2048, learning_rate=0.1, weight_decay=1e-4),
    "cifar10_small": START_OF_BOTH
    | dict(width=32, widths=(32, 64, 128, 256), projector=(512, 128), predictor=(512,), batch_norm_splits=2)
    | dict(queue_size=4096, learning_rate=0.06, weight_decay=5e-4),
}
START_VIEWS: dict[str, dict[str, Any]] = {
    "digits": {"views.crop_scale": [0.5, 1.3], "views.rotation": 10},
    "cifar10_small": {
        "views.crop_scale": [0.2, 1.0],
        "views.grey": 0.2,
        "views.brightness": 0.4,
        "views.contrast": 0.4,
    },
}

# Every method draws from these, by recipe ...
COMMON: dict[str, dict[str, list]] = {
    "digits": {
        "learning_rate": [0.06, 0.1, 0.2, 0.4],
        "weight_decay": [2e-5, 1e-4, 5e-4],
        "projector": [[128, 64], [256, 128], [256], [512]],
        "batch_norm_splits": [1, 2, 4],
        "views.crop_scale": [[0.5, 1.3], [0.3, 1.3], [0.4, 1.6]],
        "views.rotation": [10, 20],
    },
    "cifar10_small": {
        "learning_rate": [0.03, 0.06, 0.12],
        "weight_decay": [1e-4, 5e-4],
        "projector": [[512, 128], [256, 128], [512, 256]],
        "batch_norm_splits": [1, 2, 4],
        "views.crop_scale": [[0.2, 1.0], [0.3, 1.0], [0.12, 1.0]],
    },
}
# but for methods whose projector needs a hidden layer with batch norm ...
PROJECTORS: dict[str, list] = {"digits": [[128, 64], [256, 128], [256, 256], [512, 256]]}
HIDDEN = ("byol", "byol_asym", "simsiam")
# ... and from what it has of these.
QUEUE = {"momentum": [[0.8, 1.0], [0.9, 1.0], [0.95, 1.0], [0.98, 1.0], [0.97, 0.99]], "queue_size": [1024, 2048, 4096]}
TEACHER = {"momentum": QUEUE["momentum"]}
SOFT = {"student_temperature": [0.07, 0.1, 0.15, 0.2], "teacher_temperature": [0.02, 0.03, 0.04, 0.06]}
HARD = {"student_temperature": [0.07, 0.1, 0.15, 0.2, 0.3]}
PREDICTOR = {"predictor": [[64], [128], [256], [512]]}
SPACES: dict[str, dict[str, list]] = {
    "isd": QUEUE | SOFT,
    "isd_predictor": QUEUE | SOFT | PREDICTOR,
    "moco_v2": QUEUE | HARD,
    "co2": QUEUE
    | HARD
    | {"options.weight": [0.3, 1.0, 3.0, 10.0], "options.consistency_temperature": [0.04, 0.05, 0.1]},
    "byol": TEACHER | PREDICTOR,
    "byol_asym": TEACHER | PREDICTOR,
    "simsiam": PREDICTOR,
    "simclr": {"student_temperature": [0.07, 0.1, 0.2, 0.3, 0.5]},
    "swav": {
        "student_temperature": [0.07, 0.1, 0.2, 0.3],
        "options.prototypes": [32, 64, 128, 256],
        "options.epsilon": [0.03, 0.05],
    },
    "pirl": {"options.temperature": [0.07, 0.1, 0.2], "options.weight": [0.5, 0.75]},
    "invp": {"options.temperature": [0.07, 0.1, 0.2], "options.positives": [5, 20, 100]},
}


def base_of(recipe: str) -> Recipe:
    "The recipe as it stood when the search began."
    base = replace(find_recipe(recipe), **START.get(recipe, {}))
    for name, value in START_VIEWS.get(recipe, {}).items():
        base = change_setting(base, f"{name}={value}")
    return base


def settings_of(entry: str, trial: int, recipe: str, seed: int = 0) -> dict[str, Any]:
    "What trial number `trial` of an entry changes: nothing in the first, a draw from the space in the others."
    if trial == 0:
        return {}
    rng = np.random.default_rng([seed, trial, *entry.encode()])
    space = COMMON[recipe] | SPACES[entry]
    if entry in HIDDEN and recipe in PROJECTORS:
        space |= {"projector": PROJECTORS[recipe]}
    return {name: values[rng.integers(len(values))] for name, values in space.items()}


def halve(rungs: Rungs, run: Callable[[int, int], float]) -> int:  # the trial that was chosen
    "Successive halving: `run(trial, images)` returns a score; the best of each round are run in the next."
    trials = list(range(rungs[0][1]))
    for number, (images, count) in enumerate(rungs):
        trials = trials[:count]
        scores = {trial: run(trial, images) for trial in trials}
        trials = sorted(trials, key=lambda t: (-scores[t], t))
        if number + 1 == len(rungs):
            break
    return trials[0]


class Search:
    "The trials of one recipe on one set of images; a trial that is on disk is read and not repeated."

    def __init__(
        self, recipe: str, data: str | None, out: Path, seed: int = 0, root: str = "data", note: str = ""
    ) -> None:
        self.name, self.base, self.seed, self.note = recipe, base_of(recipe), seed, note
        self.base = replace(self.base, data=data or self.base.data)
        self.out, self.root, self.sets = out / recipe, root, None

    def path(self, entry: str, trial: int, images: int) -> Path:
        return self.out / entry / f"{trial:02}-{images}.json"

    def asked(self, entry: str, trial: int, images: int) -> dict[str, Any]:
        "What a trial is about; a file that says something else is refused."
        return dict(
            recipe=self.name,
            data=self.base.data,
            entry=entry,
            trial=trial,
            budget=images,
            seed=self.seed,
            settings=method_of(entry)[1] | settings_of(entry, trial, self.name, self.seed),
        )

    def run(self, entry: str, trial: int, images: int) -> float:
        "The score of a trial: read, or trained for."
        asked, path = self.asked(entry, trial, images), self.path(entry, trial, images)
        if (done := found(path, asked)) is None:
            started = time.monotonic()
            keep(path, done := asked | self.train(entry, asked["settings"], images) | about("search"))
            said = f"{entry:<13} trial {trial:>2} {images:>8,} images {done['score']:.4f}"
            print(f"{said} ({time.monotonic() - started:.0f} s) {asked['settings']}", flush=True)
        return done["score"]

    def train(self, entry: str, settings: dict[str, Any], images: int) -> dict[str, Any]:
        "One training and its scores on the validation split; a training that diverges scores 0."
        if self.sets is None:
            self.sets = hold_out(load_images(self.base.data, self.base.image_size, self.root)[0], self.base.data)
        train_set, validation = self.sets
        recipe = entry_recipe(entry, self.base, images, settings, self.seed)
        notes = {"note": self.note} if self.note else {}
        try:
            method, _, cost = trained(recipe, train_set)
        except InputError as error:
            return dict(score=0.0, failed=str(error)) | notes
        scores = scores_of(method, train_set, validation)
        best = scores[chosen_encoder(scores)]
        return (
            dict(
                score=round((best["knn20"] + best["linear"]) / 2, 5),
                scores=scores,
                validation_images=len(validation),
                **cost,
                recipe_json=describe(recipe),
            )
            | notes
        )

    def choose(self, entry: str, rungs: Rungs) -> int:
        "Search one entry to the end."
        return halve(rungs, lambda trial, images: self.run(entry, trial, images))

    def summary(self, rungs: Rungs) -> dict[str, Any]:
        "What was chosen for every entry whose search is finished."
        chosen, (images, count) = {}, rungs[-1]
        for entry in SPACES:
            last = [json.loads(p.read_text()) for p in sorted((self.out / entry).glob(f"*-{images}.json"))]
            if len(last) == count:
                done = max(last, key=lambda t: (t["score"], -t["trial"]))
                kept = {name: done[name] for name in ("settings", "trial", "score", "scores", "images_seen", "data")}
                chosen[entry] = dict(method=method_of(entry)[0], trials=rungs[0][1]) | kept
        return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="digits", help=f"one of {', '.join(RUNGS)}")
    parser.add_argument(
        "--data", help="where the recipe's images are, e.g. folder:data/cifar10; default: as the recipe says"
    )
    parser.add_argument("--root", default="data", help="where torchvision's sets lie")
    parser.add_argument("--methods", nargs="+", default=list(SPACES), metavar="METHOD")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="kept in every file, e.g. what the images are")
    parser.add_argument("--out", type=Path, default=RESULTS / "search")
    parser.add_argument("--summary", action="store_true", help="write and print what was chosen; train nothing")
    given = parser.parse_args()

    torch.set_num_threads(given.threads)
    check_names([given.recipe], list(RUNGS), "recipe")
    check_names(given.methods, list(SPACES), "method")
    search, rungs = Search(given.recipe, given.data, given.out, given.seed, given.root, given.note), RUNGS[given.recipe]
    if given.summary:
        keep(search.out / "chosen.json", chosen := search.summary(rungs))
        for entry, row in chosen.items():
            print(f"{entry:<13} trial {row['trial']:>2} score {row['score']:.4f} {row['settings']}")
        return
    for entry in given.methods:
        print(f"{entry}: trial {search.choose(entry, rungs)} is chosen", flush=True)


if __name__ == "__main__":
    with one_sentence("search.py", again="the same command goes on"):
        main()
