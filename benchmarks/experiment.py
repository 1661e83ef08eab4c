"""What the experiments share: splits by original, one training, its scores, one JSON file."""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from isd_nb import __version__
from isd_nb.studies.compare import recipe_for
from isd_nb.data import ImageSet, subsample_evenly
from isd_nb.errors import InputError
from isd_nb.embedding import embed
from isd_nb.evaluation import few_label_accuracy, knn_accuracy, linear_accuracy
from isd_nb.method import Method
from isd_nb.kernels.devices import machine
from isd_nb.engine.runs import read_metrics
from isd_nb.engine.training import train
from isd_nb.protocols.storage import write_json
from isd_nb.recipe import Recipe, recipe_to_json
from isd_nb.sources.splits import validation_split

RESULTS = Path(__file__).parent.parent / "results"
COPIES = {"digits": 4}  # how many images of each original a data set has, one after another; others have one
HELD_OUT = {"digits": 260}  # originals in the validation split; others: a tenth of the images
BANK = 15_000  # training images that features are compared with, spaced evenly where there are more

# Entries of the search and of the tables: a name, the method, and the settings that make the entry what it is.
ENTRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "isd": ("isd", {"predictor": []}),
    "isd_by_hand": ("isd", {}),
    "isd_predictor": ("isd", {}),
}


def method_of(entry: str) -> tuple[str, dict[str, Any]]:
    "The method of an entry, and the settings that belong to the entry; a method's own name is an entry, too."
    return ENTRIES.get(entry, (entry, {}))


def hold_out(
    images: ImageSet,  # with labels; the copies of an original stand side by side
    data: str,  # as a recipe names it
    seed: int = 0,
) -> tuple[ImageSet, ImageSet]:  # to train on, to choose by
    "Split by original: all copies of an original are on the same side, and each class has the same share on both."
    if images.labels is None:
        raise InputError(f"{data} has no labels, so no settings can be chosen on it")
    copies = COPIES.get(data, 1)
    return validation_split(images, HELD_OUT.get(data, len(images) // copies // 10), copies, seed)


def entry_recipe(
    entry: str, base: Recipe, images: int, settings: Mapping[str, Any], seed: int, evaluations: int = 1
) -> Recipe:
    "The recipe of an entry with these settings, for so many images; temperatures left open are those of the base."
    from dataclasses import replace

    method, fixed = method_of(entry)
    same = dict(student_temperature=base.student_temperature, teacher_temperature=base.teacher_temperature)
    recipe = recipe_for(method, replace(base, seed=seed), images, {**same, **fixed, **settings})
    return replace(recipe, evaluations=evaluations)


def scores_of(
    method: Method, train_set: ImageSet, test_set: ImageSet, few: int | None = None, bank: int = BANK
) -> dict[str, dict[str, float]]:
    "1-NN, 20-NN and linear accuracy of every encoder; with a seed `few` also with 1% and 10% of the labels."
    found, known = {}, subsample_evenly(train_set, bank)
    for name, encoder in method.encoders().items():
        data = embed(encoder, known), known.labels, embed(encoder, test_set), test_set.labels
        scores = dict(
            knn1=knn_accuracy(*data, k=1),
            knn20=knn_accuracy(*data, k=min(20, len(known))),
            linear=linear_accuracy(*data),
        )
        if few is not None:
            scores |= {f"labels_{n}": few_label_accuracy(*data, share, few).top1 for n, share in ((1, 0.01), (10, 0.1))}
        found[name] = {k: round(v, 5) for k, v in scores.items()}
    return found


def chosen_encoder(scores: Mapping[str, Any]) -> str:
    "The encoder that is evaluated: the teacher where there is one."
    return "teacher" if "teacher" in scores else "student"


class Watch:
    "Called at every evaluation: what `measure` returns, and the processor time of training without that of measuring."

    def __init__(self, measure: Callable[[Method], Mapping[str, float]] | None = None) -> None:
        self.measure, self.outside, self.started = measure, 0.0, time.process_time()

    def __call__(self, method: Method) -> dict[str, float]:
        begun = time.process_time()
        row = dict(processor_seconds=round(begun - self.started - self.outside, 2))
        row |= self.measure(method) if self.measure else {}
        self.outside += time.process_time() - begun
        return row


def trained(
    recipe: Recipe,
    images: ImageSet,
    measure: Callable[[Method], Mapping[str, float]] | None = None,
) -> tuple[Method, list[dict[str, float]], dict[str, float]]:  # the method, rows of evaluations, cost
    "Train once in a temporary folder."
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(measure)
        done = train(recipe, images, Path(folder) / "run", watch, device="cpu", show=False)
        rows = [r for r in read_metrics(Path(folder) / "run") if "processor_seconds" in r]
    keep = [{k: round(v, 5) for k, v in r.items() if k not in ("learning_rate", "images_per_second")} for r in rows]
    return (
        done.method,
        keep,
        dict(
            images_seen=done.images_seen,
            processor_seconds=rows[-1]["processor_seconds"],
            seconds=round(done.seconds, 1),
        ),
    )


def about(script: str) -> dict[str, Any]:
    "What somebody needs to repeat a number."
    python = ".".join(map(str, sys.version_info[:3]))
    return dict(
        command=shlex.join(["python", f"benchmarks/{script}.py", *sys.argv[1:]]),
        machine=machine(),
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 1),
        versions=dict(isd_nb=__version__, torch=torch.__version__, python=python),
    )


def keep(path: Path, values: Mapping[str, Any]) -> None:
    "Write one result."
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, values)


def found(path: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    "A result that is there; an `InputError` where it answers another question."
    if not path.is_file():
        return None
    values = json.loads(path.read_text())
    plain = json.loads(json.dumps(asked))
    if other := [k for k, v in plain.items() if values.get(k) != v]:
        raise InputError(
            f"{path} was made with another {other[0]} ({json.dumps(values.get(other[0]))}, now "
            f"{json.dumps(plain[other[0]])}); remove it or choose another --out"
        )
    return values


def run_once(
    path: Path, asked: Mapping[str, Any], run: Callable[[], Mapping[str, Any]], script: str, title: str
) -> None:
    "Unless its result is there: run, keep the result beside what was asked, and print its accuracy."
    if found(path, asked) is not None:
        return
    started = time.monotonic()
    keep(path, done := {**asked, **run(), **about(script)})
    scores = done["scores"]
    best = scores["pixels"] if "pixels" in scores else scores[chosen_encoder(scores)]
    said = f"20-NN {best['knn20']:.3f} linear {best['linear']:.3f} ({time.monotonic() - started:.0f} s)"
    print(f"{title}: {said}", flush=True)


def run_each(
    given: argparse.Namespace,  # see `read_options`
    what: str,  # what runs are made of, as there
    about_case: Callable[[str], Mapping[str, Any]],  # of a name: what else is kept beside the result
    run: Callable[[str, int, int], Mapping[str, Any]],  # of a name, a seed and a number of images
    script: str,
) -> None:
    "Every case with every seed on `digits(seed=200 + SEED)`, each once; all cases of a seed first."
    names = getattr(given, f"{what}s")
    for seed in given.seeds:
        for name in names:
            asked = {what: name, "seed": seed, "budget": given.images, "data": f"digits(seed={200 + seed})"}
            path, title = given.out / f"{name}-{seed}.json", f"{name:<{max(map(len, names))}} seed {seed}"
            run_once(path, {**asked, **about_case(name)}, partial(run, name, seed, given.images), script, title)


def describe(recipe: Recipe) -> dict[str, Any]:
    "A recipe as JSON holds it, without what only names the run."
    return {k: v for k, v in recipe_to_json(recipe).items() if k not in ("name", "evaluations")}


def read_options(
    doc: str,  # of the script
    what: str,  # what runs are made of: "variant", "case", "method"
    names: Sequence[str],  # all there are, and the default
    images: int,
    out: Path,
    repeats: str = "seeds",  # what is repeated, and how often
    numbers: Sequence[int] = (0, 1, 2),
) -> argparse.Namespace:
    "The options of an experiment that runs by name and seed; the number of threads is set, and names are checked."
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument(f"--{what}s", nargs="+", default=list(names), metavar="NAME")
    parser.add_argument(f"--{repeats}", nargs="+", type=int, default=list(numbers))
    parser.add_argument("--images", type=int, default=images, help="seen in every run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--summary", action="store_true", help="print the table of what is there; train nothing")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    check_names(getattr(given, f"{what}s"), names, what)
    return given


def check_names(names: Sequence[str], known: Sequence[str], what: str) -> None:
    "Raise for the first name that is not known."
    from isd_nb.errors import suggest

    for name in names:
        if name not in known:
            raise InputError(f"unknown {what} {name!r}: {suggest(name, known)}")
