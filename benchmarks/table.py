"""The final table on digits: frozen settings, new splits, the test digits of each split scored once at the end.

    python benchmarks/table.py --images 250000 --splits 101 102 103
    python benchmarks/table.py --summary

`digits(seed=SPLIT)` changes which 500 of the 1,797 digits are the test set, where the digits are placed, and with
it every image. Settings come from results/search/digits/chosen.json; no search, no ablation and no earlier table
has seen these splits. Of the 1,297 others 260 originals are held out as in search.py: their 20-NN accuracy while
training is the learning curve (over images seen and processor seconds). Networks and classifiers see the other
1,037 originals, four copies each. PIRL, InvP, CompRess and supervised training keep settings of an earlier search
of four trials (results/compare/digits_settings.json), and BYOL takes those of `byol_asym`; their rows say so.
CompRess distils the teacher of `isd` of the same split, which is trained first.

Each run is a file OUT/METHOD-SPLIT.json and is not repeated.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from experiment import (
    RESULTS, about, chosen_encoder, describe, entry_recipe, evenly, found, hold_out, keep, method_of, read_options,
    scores_of, trained
)
from isd_nb.engine.launch import one_sentence
from isd_nb.data import ImageSet
from isd_nb.errors import InputError
from isd_nb.sources.digits import digits
from isd_nb.embedding import embed
from isd_nb.evaluation import few_label_accuracy, knn_accuracy, linear_accuracy
from isd_nb.kernels.scores import seed_interval
from isd_nb.method import Method
from isd_nb.engine.state import save_encoders
from isd_nb.methods.building import build_method
from search import base_of

KEPT = ("pirl", "invp", "compress", "supervised")
BORROWED = {"byol": "byol_asym"}  # takes the settings of another where it has no search of its own
METHODS = (
    "isd",
    "isd_by_hand",
    "isd_predictor",
    "moco_v2",
    "byol_asym",
    "simsiam",
    "simclr",
    "co2",
    "swav",
    "byol",
    *KEPT,
)
CHOSEN, EARLIER = RESULTS / "search" / "digits" / "chosen.json", RESULTS / "compare" / "digits_settings.json"
FINAL = RESULTS / "search" / "digits" / "final.json"
GUIDES = RESULTS.parent / "runs" / "guides"


def settings_for(entry: str) -> tuple[dict[str, Any], str]:  # settings, and where they come from
    "The frozen settings of an entry."
    if entry == "isd_by_hand":
        return json.loads(FINAL.read_text())["isd"]["settings"], "found by hand, outside the shared search"
    chosen = json.loads(CHOSEN.read_text()) if CHOSEN.is_file() else {}
    for name in (entry, BORROWED.get(entry)):
        if name in chosen:
            whose = f"search, {chosen[name]['trials']} trials" + (f" of {name}" if name != entry else "")
            return chosen[name]["settings"], whose
    earlier = json.loads(EARLIER.read_text())
    if entry in earlier:
        return earlier[entry]["settings"], f"earlier search, {len(earlier[entry]['trials'])} trials"
    raise InputError(f"there are no settings for {entry} in {CHOSEN}: run search.py --methods {entry}, then --summary")


def curve_of(bank: ImageSet, validation: ImageSet) -> Any:
    "20-NN accuracy on the validation split, of every encoder."
    some = evenly(bank, 2000)

    def measure(method: Method) -> dict[str, float]:
        return {
            f"knn20_{name}": knn_accuracy(embed(e, some), some.labels, embed(e, validation), validation.labels)
            for name, e in method.encoders().items()
        }

    return measure


def baselines(split: int, train_set: ImageSet, test: ImageSet) -> dict[str, Any]:
    "Scores of raw pixels and of the untrained net."
    scores = {}
    for name, encoder in {
        "pixels": nn.Flatten(),
        "untrained": build_method(base_of("digits"), train_set).student,
    }.items():
        data = embed(encoder, train_set), train_set.labels, embed(encoder, test), test.labels
        scores[name] = dict(
            knn1=knn_accuracy(*data, k=1), knn20=knn_accuracy(*data, k=20), linear=linear_accuracy(*data)
        ) | {f"labels_{n}": few_label_accuracy(*data, share, split).top1 for n, share in ((1, 0.01), (10, 0.1))}
    return dict(scores=scores)


def run(entry: str, split: int, images: int) -> dict[str, Any]:
    "One training on one split."
    train_set, test = digits(seed=split)
    train_set, validation = hold_out(train_set, "digits")
    if entry == "baselines":
        return baselines(split, train_set, test)
    settings, source = settings_for(entry)
    if entry == "compress":
        settings = settings | {"options.guide": str(GUIDES / f"{split}")}
    recipe = entry_recipe(entry, base_of("digits"), images, settings, split, evaluations=10)
    method, curve, cost = trained(recipe, train_set, curve_of(train_set, validation))
    if entry == "isd":
        save_encoders(GUIDES / f"{split}" / "encoder.safetensors", method, recipe, train_set)
    named = {k: v for k, v in settings.items() if k != "options.guide"}
    return dict(
        scores=scores_of(method, train_set, test, few=split),
        curve=curve,
        settings=method_of(entry)[1] | named,
        settings_from=source,
        recipe_json=describe(recipe) | ({"options": "see settings"} if entry == "compress" else {}),
        **cost,
    )


def summary(out: Path) -> str:
    "A table of means over splits with the interval of 20-NN."
    rows = {}
    for path in sorted(out.glob("*.json")):
        done = json.loads(path.read_text())
        for name, scores in done["scores"].items():
            if done["entry"] == "baselines" or name == chosen_encoder(done["scores"]):
                rows.setdefault(name if done["entry"] == "baselines" else done["entry"], []).append(scores)
    lines = [f"{'':<14}splits  1-NN   20-NN  (95%)           linear  1%     10%"]
    for name, found_ in sorted(rows.items(), key=lambda r: -np.mean([s["knn20"] for s in r[1]])):
        mean = {k: np.mean([s[k] for s in found_]) for k in found_[0]}
        low, high = seed_interval([s["knn20"] for s in found_])[1:] if len(found_) > 1 else (np.nan, np.nan)
        neighbours = f"{mean['knn1']:.3f}  {mean['knn20']:.3f}  ({low:.3f}, {high:.3f})"
        few = f"{mean['labels_1']:.3f}  {mean['labels_10']:.3f}"
        lines.append(f"{name:<14}{len(found_):>4}    {neighbours}  {mean['linear']:.3f}   {few}")
    return "\n".join(lines)


def main() -> None:
    names, splits = ["baselines", *METHODS], [101, 102, 103, 104, 105]
    given = read_options(__doc__, "method", names, 500_000, RESULTS / "tables" / "digits", "splits", splits)
    if given.summary:
        print(summary(given.out))
        return
    for split in given.splits:
        for entry in given.methods:
            path, asked = (
                given.out / f"{entry}-{split}.json",
                dict(entry=entry, split=split, data=f"digits(seed={split})"),
            )
            asked |= {} if entry == "baselines" else dict(budget=given.images, seed=split)
            if found(path, asked) is None:
                started = time.monotonic()
                keep(path, done := asked | run(entry, split, given.images) | about("table"))
                best = done["scores"]["pixels" if entry == "baselines" else chosen_encoder(done["scores"])]
                print(
                    f"{entry:<14} split {split}: 20-NN {best['knn20']:.3f} linear {best['linear']:.3f} "
                    f"({time.monotonic() - started:.0f} s)",
                    flush=True,
                )


if __name__ == "__main__":
    with one_sentence("table.py", again="the same command goes on"):
        main()
