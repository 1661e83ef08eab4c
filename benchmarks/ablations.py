"""What the parts of ISD are worth: the chosen recipe on digits with one thing changed at a time, three seeds each.

    python benchmarks/ablations.py --images 187000
    python benchmarks/ablations.py --summary

The recipe is today's, `isd_by_hand` of results/search/digits/final.json. A seed changes the split of the digits
(`digits(seed=200 + SEED)`, not seen by the search nor by the table), where they are placed, the initial weights and
the order of the images, and is the same for all variants, so that differences are paired. Networks and classifiers
see the 1,037 originals that are neither in the test set nor held out; accuracy is that of the 500 test digits and,
beside it, of the validation split. At the end the measures of health.py are taken of the validation split: effective
rank, spread, alignment, uniformity, entropy of the soft labels. Nothing is chosen by these runs. Each run is a file
OUT/NAME-SEED.json and is not repeated.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiment import (
    RESULTS, chosen_encoder, describe, entry_recipe, hold_out, read_options, run_once, scores_of, trained
)
from health import health
from isd_nb.engine.launch import one_sentence
from isd_nb.errors import InputError
from isd_nb.sources.digits import digits
from isd_nb.recipe import Recipe
from search import base_of

FINAL = RESULTS / "search" / "digits" / "final.json"
Variant = tuple[str, dict[str, Any]]  # the method, and the settings that differ from the recipe
ONE_HOT = "variants:OneHot"
WIDTHS = {"projector_128_64": [128, 64], "one_layer_512": [512]}  # and the recipe's one layer of 256
VARIANTS: dict[str, Variant] = {
    "recipe": ("isd", {}),
    # the label, with everything else equal, for three projectors
    "one_hot": (ONE_HOT, {}),
    **{name: ("isd", {"projector": widths}) for name, widths in WIDTHS.items()},
    **{f"one_hot-{name}": (ONE_HOT, {"projector": widths}) for name, widths in WIDTHS.items()},
    # the heads
    "predictor_128": ("isd", {"predictor": [128]}),
    "no_projector": ("isd", {"projector": []}),
    # the queue
    **{f"queue_{k}": ("isd", {"queue_size": k}) for k in (256, 8192)},
    "prefilled": ("variants:Prefilled", {}),
    # the temperatures
    **{f"student_temperature_{t}": ("isd", {"student_temperature": t}) for t in (0.07, 0.2)},
    **{f"teacher_temperature_{t}": ("isd", {"teacher_temperature": t}) for t in (0.02, 0.06)},
    # the teacher
    "momentum_0.99": ("isd", {"momentum": [0.99, 0.99]}),
    "momentum_0.97_to_0.99": ("isd", {"momentum": [0.97, 0.99]}),
    # batch norm
    "parts_4-shuffled_keys": ("variants:Shuffled", {"batch_norm_splits": 4}),
    # both directions, at the same passes through encoders
    "symmetric-half_the_images": ("isd", {"options.symmetric": True}),
    # the views
    "crops_smaller": ("isd", {"views.crop_scale": [0.25, 1.3]}),
    "crops_of_all_sizes": ("isd", {"views.crop_scale": [0.4, 1.6]}),
    "rotation_20": ("isd", {"views.rotation": 20}),
}
HALF = ("symmetric-half_the_images",)


def final_settings(entry: str = "isd_by_hand") -> dict[str, Any]:  # or "isd": the recipe before today's
    "The settings of ISD that the recipe takes over."
    if not FINAL.is_file():
        raise InputError(f"there is no {FINAL}: it says which settings of ISD were chosen in the end")
    return json.loads(FINAL.read_text())[entry]["settings"]


def variant_recipe(
    variant: Variant, images: int, seed: int, evaluations: int = 1, entry: str = "isd_by_hand"
) -> Recipe:
    "The chosen recipe with the changes of a variant."
    method, changes = variant
    settings = {k: v for k, v in final_settings(entry).items() if not k.startswith("options.")} | changes
    base = base_of("digits")
    backbone = settings.pop("backbone", base.backbone)  # no setting of a method's own
    return entry_recipe(method, replace(base, backbone=backbone), images, settings, seed, evaluations)


def same_as_recipe(variant: Variant, images: int) -> bool:
    "Whether a variant changes nothing, because the recipe has these settings."
    return describe(variant_recipe(variant, images, 0)) == describe(variant_recipe(VARIANTS["recipe"], images, 0))


def run(name: str, seed: int, images: int) -> dict[str, Any]:
    "One training, its scores and its measures."
    train_set, test = digits(seed=200 + seed)
    train_set, validation = hold_out(train_set, "digits")
    recipe = variant_recipe(VARIANTS[name], images // 2 if name in HALF else images, seed)
    method, _, cost = trained(recipe, train_set)
    measures = health(recipe, train_set, validation)(method)
    return dict(
        scores=scores_of(method, train_set, test),
        validation=scores_of(method, train_set, validation),
        measures={k: round(v, 5) for k, v in measures.items()},
        recipe_json=describe(recipe),
        **cost,
    )


def read(out: Path) -> dict[str, dict[int, Mapping[str, Any]]]:  # by variant and seed
    "All runs that are there."
    runs: dict[str, dict[int, Mapping[str, Any]]] = {}
    for path in sorted(out.glob("*.json")):
        done = json.loads(path.read_text())
        runs.setdefault(done["variant"], {})[done["seed"]] = done
    return runs


def summary(out: Path) -> str:
    "Means over seeds and the paired difference from the recipe."
    runs = read(out)
    lines = [f"{'':<28}seeds  20-NN  linear  difference (20-NN, sd)  rank  align  unif   label entropy"]
    for name in [n for n in VARIANTS if n in runs]:
        seeds, best = runs[name], {s: r["scores"][chosen_encoder(r["scores"])] for s, r in runs[name].items()}
        base = {s: r["scores"][chosen_encoder(r["scores"])] for s, r in runs.get("recipe", {}).items()}
        gaps = [best[s]["knn20"] - base[s]["knn20"] for s in best if s in base]
        which = chosen_encoder(next(iter(seeds.values()))["scores"])
        measure = {
            k: np.mean([r["measures"].get(k, np.nan) for r in seeds.values()])
            for k in (f"rankme_{which}", f"alignment_{which}", f"uniformity_{which}", "label_entropy")
        }
        lines.append(
            f"{name:<28}{len(seeds):>4}   {np.mean([b['knn20'] for b in best.values()]):.3f}  "
            f"{np.mean([b['linear'] for b in best.values()]):.3f}   {np.mean(gaps) if gaps else np.nan:+.3f} "
            f"({np.std(gaps, ddof=1) if len(gaps) > 1 else np.nan:.3f})         "
            + "  ".join(f"{v:.2f}" for v in measure.values())
        )
    return "\n".join(lines)


def one(out: Path, name: str, seed: int, images: int) -> None:
    "One run, unless it is there."
    path, (method, changes) = out / f"{name}-{seed}.json", VARIANTS[name]
    asked = dict(
        variant=name, seed=seed, budget=images, data=f"digits(seed={200 + seed})", changes=changes, method=method
    )
    run_once(path, asked, partial(run, name, seed, images), "ablations", f"{name:<28} seed {seed}")


def main() -> None:
    given = read_options(__doc__, "variant", list(VARIANTS), 187_000, RESULTS / "ablations" / "digits")
    if given.summary:
        print(summary(given.out))
        return
    for seed in given.seeds:  # all variants of a seed first: what is cut short is still a whole comparison
        for name in given.variants:
            if name == "recipe" or name in HALF or not same_as_recipe(VARIANTS[name], given.images):
                one(given.out, name, seed, given.images)


if __name__ == "__main__":
    with one_sentence("ablations.py", again="the same command goes on"):
        main()
