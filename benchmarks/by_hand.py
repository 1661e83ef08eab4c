"""Trials of settings found by hand, outside the shared search: the same split and score, marked as such.

    python benchmarks/by_hand.py --images 62000 --trial batch_128 batch_size=128 learning_rate=0.06 --trial as_it_was

The settings are laid over the recipe of `--entry` when the search began (search.py, START, and what its method
changes), so that nothing changes them afterwards. Each trial is a file OUT/RECIPE/by_hand/NAME-IMAGES-SEED.json and
is not repeated.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiment import RESULTS, about, chosen_encoder, describe, entry_recipe, found, hold_out, keep, scores_of, trained
from isd_nb.engine.launch import one_sentence
from isd_nb.methods.building import check_method
from isd_nb.methods.choosing import change_setting
from isd_nb.data import ImageSet
from isd_nb.errors import InputError
from isd_nb.sources.door import load_images
from isd_nb.recipe import Recipe
from search import base_of


Sets = tuple[ImageSet, ImageSet]


def recipe_of(given: argparse.Namespace, base: Recipe, settings: list[str]) -> Recipe:
    "The recipe of the entry with these settings, which come after what the method itself changes."
    recipe = entry_recipe(given.entry, base, given.images, {}, given.seed)
    recipe = replace(recipe, method=given.method or recipe.method)
    for setting in settings:
        if setting.partition("=")[0] in ("steps", "epochs", "seed"):
            raise InputError(f"--trial takes no {setting}: --images sets how long a trial is, --seed its seed")
        recipe = change_setting(recipe, setting)
    check_method(recipe)
    return replace(recipe, steps=max(1, round(given.images / recipe.batch_size)))


def trial(recipe: Recipe, sets: Sets) -> dict[str, Any]:
    "Train once and score on the validation split."
    try:
        method, _, cost = trained(recipe, sets[0])
    except InputError as error:
        return dict(score=0.0, failed=str(error), recipe_json=describe(recipe))
    scores = scores_of(method, *sets)
    best = scores[chosen_encoder(scores)]
    score = round((best["knn20"] + best["linear"]) / 2, 5)
    return dict(score=score, scores=scores, validation_images=len(sets[1]), **cost, recipe_json=describe(recipe))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trial", nargs="+", action="append", required=True, metavar=("NAME", "SETTING=VALUE"))
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--entry", default="isd")
    parser.add_argument("--method", help="a class in place of the entry's, e.g. variants:Prefilled")
    parser.add_argument("--data")
    parser.add_argument("--root", default="data")
    parser.add_argument("--images", type=int, default=62_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path, default=RESULTS / "search")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    base = base_of(given.recipe)
    base, sets = replace(base, data=given.data or base.data), None
    for name, *settings in given.trial:
        path = given.out / given.recipe / "by_hand" / f"{name}-{given.images}-{given.seed}.json"
        asked = dict(recipe=given.recipe, entry=given.entry, name=name, budget=given.images, seed=given.seed)
        asked |= dict(settings=settings, found="by hand") | ({"note": given.note} if given.note else {})
        if found(path, asked) is None:
            started = time.monotonic()
            sets = sets or hold_out(load_images(base.data, base.image_size, given.root)[0], base.data)
            keep(path, done := asked | trial(recipe_of(given, base, settings), sets) | about("by_hand"))
            score, seconds = done["score"], time.monotonic() - started
            print(f"{name:<28}{given.images:>8,} images {score:.4f} ({seconds:.0f} s) {settings}", flush=True)


if __name__ == "__main__":
    with one_sentence("by_hand.py", again="the same command goes on"):
        main()
