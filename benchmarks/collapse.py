"""Why ISD does not collapse: each safeguard switched off alone, with curves of what collapse would show.

    python benchmarks/collapse.py --images 62000
    python benchmarks/collapse.py --summary

The splits and the seeds are those of ablations.py; the recipe is the one before today's, `isd` of
results/search/digits/final.json, whose head has batch norm. Nothing is tuned until it collapses. Of every
encoder, while training: 20-NN accuracy of the validation split, effective rank, spread of unit features, alignment,
uniformity, the same of the projector's vectors (rank and spread), and the entropy of the soft labels. `end` holds
the scores of the 500 test digits. Each run is a file OUT/NAME-SEED.json and is not repeated.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ablations import Variant, final_settings, variant_recipe
from experiment import (
    RESULTS, about, chosen_encoder, describe, found, hold_out, keep, read_options, scores_of, trained
)
from health import health
from isd_nb.data import subsample_evenly
from isd_nb.embedding import embed
from isd_nb.engine.launch import one_sentence
from isd_nb.evaluation import knn_accuracy
from isd_nb.errors import InputError
from isd_nb.sources.digits import digits

POINTS, IMAGES, BANK = 10, 520, 1000  # of every curve; images that it is scored on, and among
CASES: dict[str, Variant] = {
    "recipe": ("isd", {}),
    "predictor": ("isd", {"predictor": [128]}),
    "teacher_as_soft_as_student": ("isd", {"teacher_temperature": "student"}),  # both have the student's temperature
    "teacher_softer_than_student": ("isd", {"teacher_temperature": "twice"}),  # twice the student's
    "teacher_frozen": ("isd", {"momentum": [1.0, 1.0]}),
    "teacher_is_student": ("isd", {"momentum": [0.0, 0.0]}),
    "gradient_through_keys": ("variants:BothLearn", {}),
    "no_batch_norm_in_heads": ("variants:NoNormInHeads", {}),
    "no_batch_norm": ("variants:NoNormInHeads", {"backbone": "variants:tiny_without_norm"}),
    "queue_of_one_batch": ("isd", {"queue_size": "batch"}),
    "same_temperature-teacher_is_student": ("isd", {"teacher_temperature": "student", "momentum": [0.0, 0.0]}),
    "byol_asym": ("byol_asym", {"predictor": [128]}),
    "byol_asym-no_predictor": ("variants:PlainBYOL", {}),
    "simsiam": ("simsiam", {"predictor": [128]}),
    "simsiam-no_predictor": ("variants:PlainSimSiam", {"predictor": [128]}),
    "simsiam-no_stop_gradient": ("variants:OpenSimSiam", {"predictor": [128]}),
    "swav": ("swav", {}),
    "swav-clusters_of_any_size": ("swav", {"options": {"rounds": 0}}),  # codes by a plain softmax
}


def in_numbers(variant: Variant) -> Variant:
    "A variant whose teacher temperature and queue are numbers."
    method, changes = variant
    settings = final_settings("isd")
    student = settings.get("student_temperature", 0.1)
    values = {"student": student, "twice": 2 * student, "batch": settings["batch_size"]}
    return method, {k: values.get(v, v) if isinstance(v, str) else v for k, v in changes.items()}


def run(name: str, seed: int, images: int) -> dict[str, Any]:
    "One training with its curves; a training that diverges says so."
    train_set, test = digits(seed=200 + seed)
    train_set, validation = hold_out(train_set, "digits")
    recipe = variant_recipe(in_numbers(CASES[name]), images, seed, POINTS, "isd")
    try:
        method, curve, cost = trained(recipe, train_set, health(recipe, train_set, validation, IMAGES, BANK))
    except InputError as error:
        return dict(diverged=str(error), recipe_json=describe(recipe))
    return dict(end=scores_of(method, train_set, test), curve=curve, recipe_json=describe(recipe), **cost)


def keep_pixels(out: Path, seed: int) -> None:
    "Write the 20-NN accuracy of raw pixels, of the images that the curves are made of."
    path, asked = out / f"raw_pixels-{seed}.json", dict(case="raw_pixels", seed=seed, data=f"digits(seed={200 + seed})")
    if found(path, asked) is not None:
        return
    train_set, validation = hold_out(digits(seed=200 + seed)[0], "digits")
    bank_set, some = subsample_evenly(train_set, BANK), subsample_evenly(validation, IMAGES)
    pixels = [(embed(nn.Flatten(), images), images.labels) for images in (bank_set, some)]
    keep(path, asked | dict(knn20=round(knn_accuracy(*pixels[0], *pixels[1]), 5)) | about("collapse"))


def summary(out: Path) -> str:
    "What the student and the teacher are at the end, means over seeds."
    lines = [f"{'':<38}seeds  20-NN s/t      effective rank s/t   spread s/t   spread of projections s"]
    for name in CASES:
        runs = [json.loads(p.read_text()) for p in sorted(out.glob(f"{name}-[0-9].json"))]
        ends = [r["curve"][-1] for r in runs if "curve" in r]
        if ends:
            mean = {k: np.mean([e[k] for e in ends]) for k in ends[0]}
            pair = [
                f"{mean[f'{k}_student']:.3f}/{mean.get(f'{k}_teacher', np.nan):.3f}"
                for k in ("knn20", "rankme", "spread")
            ]
            lines.append(f"{name:<38}{len(ends):>4}   {'   '.join(pair)}   {mean['spread_projected_student']:.3f}")
    return "\n".join(lines)


def main() -> None:
    given = read_options(__doc__, "case", list(CASES), 125_000, RESULTS / "collapse" / "digits")
    if given.summary:
        print(summary(given.out))
        return
    for seed in given.seeds:
        keep_pixels(given.out, seed)
        for name in given.cases:
            path, (method, changes) = given.out / f"{name}-{seed}.json", in_numbers(CASES[name])
            asked = dict(
                case=name,
                seed=seed,
                budget=given.images,
                data=f"digits(seed={200 + seed})",
                changes=changes,
                method=method,
            )
            if found(path, asked) is None:
                started = time.monotonic()
                keep(path, done := asked | run(name, seed, given.images) | about("collapse"))
                said = done.get("diverged") or f"20-NN {done['end'][chosen_encoder(done['end'])]['knn20']:.3f}"
                print(f"{name:<38} seed {seed}: {said} ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    with one_sentence("collapse.py", again="the same command goes on"):
        main()
