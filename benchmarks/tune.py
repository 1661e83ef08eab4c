"""Equal effort for every method: the same number of random trials each, scored on images held out of the training set.

    python benchmarks/tune.py --recipe digits --methods isd moco_v2 --trials 8 --images 200000

The test set is not looked at. The first trial of every method is the recipe as it stands; the others draw from SPACES.
Each trial is added to OUT (JSON) when it ends, and those that are there are not repeated. OUT also says what the trials
were made with; it is not gone on with for another recipe, other images, another budget or another seed.
"""
import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isd_nb.engine.launch import one_sentence
from isd_nb.studies.compare import recipe_for
from isd_nb.data import ImageSet
from isd_nb.errors import InputError
from isd_nb.sources.door import load_images
from isd_nb.evaluation import embed, knn_accuracy
from isd_nb.kernels.devices import machine
from isd_nb.engine.training import train
from isd_nb.methods.building import methods
from isd_nb.protocols.storage import write_json
from isd_nb.recipe import Recipe, find_recipe

RATES = [0.06, 0.1, 0.2]
MOMENTA = [(0.8, 1.0), (0.9, 1.0), (0.97, 1.0)]
TEMPERATURES = [0.07, 0.1, 0.2]
# What differs between trials, by recipe setting; "options.NAME" is an option of the method.
SPACES: dict[str, dict[str, list]] = {
    "isd": dict(momentum=MOMENTA, student_temperature=TEMPERATURES, teacher_temperature=[0.02, 0.04, 0.07]),
    "moco_v2": dict(momentum=MOMENTA, student_temperature=TEMPERATURES),
    "co2": dict(momentum=MOMENTA, student_temperature=TEMPERATURES) | {
        "options.weight": [0.3, 1.0, 10.0], "options.consistency_temperature": [0.04, 0.05, 0.1]},
    "byol": dict(momentum=MOMENTA, predictor=[(128,), (512,)], weight_decay=[1e-5, 1e-4, 5e-4]),
    "byol_asym": dict(momentum=MOMENTA, predictor=[(128,), (512,)], weight_decay=[1e-5, 1e-4, 5e-4]),
    "simsiam": dict(predictor=[(32,), (128,), (512,)], weight_decay=[1e-5, 1e-4, 5e-4]),
    "simclr": dict(student_temperature=[*TEMPERATURES, 0.5]),
    "swav": dict(student_temperature=[*TEMPERATURES, 0.5]) | {
        "options.prototypes": [32, 64, 256], "options.epsilon": [0.03, 0.05]},
    "compress": {"options.temperature": [0.02, 0.04, 0.07, 0.1]},
    "pirl": {"options.temperature": [0.07, 0.1, 0.2], "options.weight": [0.25, 0.5, 0.75]},
    "invp": {"options.temperature": [0.07, 0.1, 0.2], "options.positives": [20, 50, 100]},
    "supervised": dict(weight_decay=[1e-5, 1e-4, 5e-4]),
}


def settings_of(method: str, trial: int, seed: int) -> dict[str, Any]:
    "What trial number `trial` changes; nothing in the first."
    if trial == 0:
        return {}
    rng = np.random.default_rng([seed, trial, *method.encode()])
    space = dict(learning_rate=RATES) | SPACES.get(method, {})
    return {name: values[rng.integers(len(values))] for name, values in space.items()}


def split(images: ImageSet, copies: int, limit: int) -> tuple[ImageSet, ImageSet]:
    "A fifth of the originals (at most `limit`) to score on, all copies of the others to train on."
    originals = np.random.default_rng(0).permutation(len(images) // copies)
    held = np.sort(originals[:min(limit, len(originals) // 5)])
    rest = np.sort(originals[len(held):])
    return images.subset((rest[:, None] * copies + np.arange(copies)).ravel()), images.subset(held * copies)


def run_trial(recipe: Recipe, train_set: ImageSet, probe: ImageSet) -> dict[str, float]:
    "20-NN on the held-out images after training."
    with tempfile.TemporaryDirectory() as folder:
        try:
            trained = train(recipe, train_set, Path(folder) / "run", show=False)
        except InputError as error:
            return dict(score=0.0, failed=str(error))
    bank = train_set.subset(torch.linspace(0, len(train_set) - 1, min(20_000, len(train_set))).long())
    return {name: knn_accuracy(embed(encoder, bank), bank.labels, embed(encoder, probe), probe.labels)
            for name, encoder in trained.method.encoders().items()}


def read_trials(path: Path, question: dict[str, Any]) -> dict[str, dict[str, Any]]:  # by method
    "What a file of trials holds; an `InputError` if they were made for another question, or it does not say for which."
    found = json.loads(path.read_text()) if path.is_file() else {}
    for method, entry in found.items():
        if (asked := entry.get("question")) != question:
            other = ", ".join(f"{k} {v}" for k, v in (asked or {}).items() if question.get(k) != v)
            other = other or "what it does not say"
            raise InputError(f"the trials of {method} in {path} were made with {other}; choose another --out")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--data")
    parser.add_argument("--root", default="data")
    parser.add_argument("--methods", nargs="+", default=[m for m in methods if m != "compress"])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--images", type=int, default=200_000, help="seen in every trial")
    parser.add_argument("--guide", help="the run that compress distils")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/tuning.json"))
    given = parser.parse_args()

    base = find_recipe(given.recipe)
    question = dict(recipe=base.name, data=given.data or base.data, images=given.images, seed=given.seed)
    found = read_trials(given.out, question)
    images, _ = load_images(question["data"], base.image_size, given.root)
    train_set, probe = split(images, 4 if question["data"] == "digits" else 1, 2_000)
    for trial in range(given.trials):
        for method in given.methods:
            done = found.setdefault(method, dict(question=question, trials=[]))["trials"]
            if len(done) > trial:
                continue
            settings = settings_of(method, trial, given.seed)
            guide = {"options.guide": given.guide} if method == "compress" else {}
            recipe = recipe_for(method, replace(base, seed=given.seed), given.images, settings | guide)
            recipe = replace(recipe, evaluations=1)
            started = time.monotonic()
            scores = run_trial(recipe, train_set, probe)
            score = scores.get("score", scores.get("teacher", scores.get("student")))
            rest = {k: v for k, v in scores.items() if k != "score"}
            done.append(dict(settings=settings, score=round(score, 4)) | rest)
            best = max(done, key=lambda t: t["score"])
            found[method] |= dict(settings=best["settings"], score=best["score"], machine=machine(),
                                  images=recipe.steps * recipe.batch_size)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(given.out, found)
            print(f"{method:<11} trial {trial} {score:.3f} ({time.monotonic() - started:.0f} s) {settings}", flush=True)


if __name__ == "__main__":
    with one_sentence("tune.py", again="the same command goes on"):
        main()
