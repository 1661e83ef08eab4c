"""The final tables: frozen settings, and the test images scored once, at the end.

    python benchmarks/table.py --images 187000 --splits 101 102 103
    python benchmarks/table.py --recipe cifar10_small --data folder:data/cifar10 --images 300000 --splits 0 1 2
    python benchmarks/table.py --summary

**Digits.** `digits(seed=SPLIT)` changes which 500 of the 1,797 digits are the test set, where the digits are placed,
and with it every image. Settings were chosen by digits of split 0: by the 260 of search.py's validation split, and in
earlier days by its 500 test digits. None of these 760 is scored here: of the 500 test digits of a split the others
are, some 290 (`never_chosen_by`). Of the 1,297 others 260 originals are held out as in search.py: their 20-NN accuracy
while training is the learning curve (over images seen and processor seconds). Networks and classifiers see the other
1,037 originals, four copies each. PIRL, InvP, CompRess and supervised training keep settings of an earlier search of
four trials (results/compare/digits_settings.json), and BYOL takes those of `byol_asym`; their rows say so. CompRess
distils the teacher of `isd` of the same split, trained first.

**CIFAR-10.** The test images are those of the set. A tenth of the training images is held out as in search.py, for
the learning curves alone. A split is a seed of the training. Only methods with a search of their own take part.

Settings come from results/search/RECIPE/chosen.json (search.py --summary); `isd_by_hand`, whose settings were found
outside that search, is a row of its own.

Each run is a file OUT/METHOD-SPLIT.json and is not repeated.
"""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from experiment import (
    HELD_OUT, RESULTS, check_names, chosen_encoder, describe, entry_recipe, hold_out, method_of, run_once,
    scores_of, trained
)
from isd_nb.engine.launch import one_sentence
from isd_nb.data import ImageSet, subsample_evenly
from isd_nb.errors import InputError
from isd_nb.recipe import find_recipe
from isd_nb.sources.digits import digits
from isd_nb.sources.door import load_images
from isd_nb.sources.splits import stratified
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
SEARCHED = {  # the entries of a recipe's table
    "digits": METHODS,
    "cifar10_small": ("isd", "isd_by_hand", "moco_v2", "simclr", "simsiam", "co2", "byol_asym"),
}
GUIDES = RESULTS.parent / "runs" / "guides"


def settings_for(entry: str, recipe: str = "digits") -> tuple[dict[str, Any], str]:  # settings, and where from
    "The frozen settings of an entry."
    folder, earlier = RESULTS / "search" / recipe, RESULTS / "compare" / f"{recipe}_settings.json"
    if entry == "isd_by_hand":
        return json.loads((folder / "final.json").read_text())[entry]["settings"], "found by hand, outside the search"
    path = folder / "chosen.json"
    chosen = json.loads(path.read_text()) if path.is_file() else {}
    for name in (entry, BORROWED.get(entry)):
        if name in chosen:
            whose = f"search, {chosen[name]['trials']} trials" + (f" of {name}" if name != entry else "")
            return chosen[name]["settings"], whose
    before = json.loads(earlier.read_text()) if earlier.is_file() else {}
    if entry in before:
        return before[entry]["settings"], f"earlier search, {len(before[entry]['trials'])} trials"
    raise InputError(
        f"there are no settings for {entry} in {path}: run search.py --recipe {recipe} --methods {entry}, and then "
        "the same with --summary"
    )


def test_originals(split: int) -> np.ndarray:  # (500,) numbers of scikit-learn's digits
    "Which digits `digits(seed=split)` holds out, in the order of its test images."
    labels = load_digits().target
    return train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=split)[1]


def never_chosen_by(split: int) -> torch.Tensor:  # bool (500,), of the test images of `digits(seed=split)`
    "Whether no setting was chosen by a test image's original."
    labels = load_digits().target
    others = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=0)[0]
    held = stratified(labels[others], HELD_OUT["digits"], 0)
    chosen_by = np.concatenate([test_originals(0), others[held]])
    return torch.from_numpy(~np.isin(test_originals(split), chosen_by))


def sets_of(recipe: str, data: str, split: int) -> tuple[ImageSet, ImageSet, ImageSet]:
    "Images to train on, for the curve, and to score at the end."
    if data == "digits":
        train_set, test = digits(seed=split)
        test = test.subset(never_chosen_by(split))
    else:
        train_set, test = load_images(data, find_recipe(recipe).image_size)
    return *hold_out(train_set, data), test


def curve_of(bank: ImageSet, validation: ImageSet) -> Any:
    "20-NN accuracy on the validation split, of every encoder."
    some = subsample_evenly(bank, 2000)

    def measure(method: Method) -> dict[str, float]:
        return {
            f"knn20_{name}": knn_accuracy(embed(e, some), some.labels, embed(e, validation), validation.labels)
            for name, e in method.encoders().items()
        }

    return measure


def baselines(recipe: str, split: int, train_set: ImageSet, test: ImageSet) -> dict[str, Any]:
    "Scores of raw pixels and of the untrained net."
    scores = {}
    for name, encoder in {
        "pixels": nn.Flatten(),
        "untrained": build_method(replace(base_of(recipe), seed=split), train_set).student,
    }.items():
        data = embed(encoder, train_set), train_set.labels, embed(encoder, test), test.labels
        scores[name] = dict(
            knn1=knn_accuracy(*data, k=1), knn20=knn_accuracy(*data, k=20), linear=linear_accuracy(*data)
        ) | {f"labels_{n}": few_label_accuracy(*data, share, split).top1 for n, share in ((1, 0.01), (10, 0.1))}
    return dict(scores=scores)


def run(entry: str, split: int, images: int, recipe: str, data: str) -> dict[str, Any]:
    "One training on one split."
    train_set, validation, test = sets_of(recipe, data, split)
    if entry == "baselines":
        return baselines(recipe, split, train_set, test)
    settings, source = settings_for(entry, recipe)
    if entry == "compress":
        settings = settings | {"options.guide": str(GUIDES / f"{split}")}
    chosen = entry_recipe(entry, replace(base_of(recipe), data=data), images, settings, split, evaluations=10)
    method, curve, cost = trained(chosen, train_set, curve_of(train_set, validation))
    if entry == "isd":
        save_encoders(GUIDES / f"{split}" / "encoder.safetensors", method, chosen, train_set)
    return dict(
        scores=scores_of(method, train_set, test, few=split, bank=len(train_set)),
        curve=curve,
        settings_from=source,
        recipe_json=describe(chosen) | ({"options": "see settings"} if entry == "compress" else {}),
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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="digits", help=f"one of {', '.join(SEARCHED)}")
    parser.add_argument("--data", default="digits", help="where the recipe's images are, e.g. folder:data/cifar10")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="default: all that the recipe's table has")
    parser.add_argument("--splits", nargs="+", type=int, default=[101, 102, 103, 104, 105])
    parser.add_argument("--images", type=int, default=500_000, help="seen in every run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="kept in every file, e.g. what the images are")
    parser.add_argument("--out", type=Path, help="default: results/tables/RECIPE")
    parser.add_argument("--summary", action="store_true", help="print the table of what is there; train nothing")
    given = parser.parse_args()

    torch.set_num_threads(given.threads)
    check_names([given.recipe], list(SEARCHED), "recipe")
    names = ["baselines", *SEARCHED[given.recipe]]
    methods, out = given.methods or names, given.out or RESULTS / "tables" / given.recipe
    check_names(methods, names, "method")
    if given.summary:
        print(summary(out))
        return
    notes = {"note": given.note} if given.note else {}
    for split in given.splits:
        for entry in methods:
            data = f"digits(seed={split})" if given.data == "digits" else given.data
            path, asked = out / f"{entry}-{split}.json", dict(entry=entry, split=split, data=data)
            asked |= dict(test_images=int(never_chosen_by(split).sum())) if given.data == "digits" else {}
            if entry != "baselines":
                settings = method_of(entry)[1] | settings_for(entry, given.recipe)[0]
                asked |= dict(budget=given.images, seed=split, settings=settings)
            train_it = partial(run, entry, split, given.images, given.recipe, given.data)
            run_once(path, asked | notes, train_it, "table", f"{entry:<14} split {split}")


if __name__ == "__main__":
    with one_sentence("table.py", again="the same command goes on"):
        main()
