"""Is the teacher ahead of its student on the way? A grid of momentum and learning rate, on digits.

    python benchmarks/momentum.py --images 62000
    python benchmarks/momentum.py --summary

The splits and the seeds are those of ablations.py; the recipe is the one before today's, `isd` of
results/search/digits/final.json. Teacher and student of every run are compared twenty times while training, by 20-NN
accuracy of the validation split. Momentum is constant, or rises along a cosine to 1; the learning rate decays along a
cosine, or stays for 70% of the steps and falls to a fifth then and again at 90%, as in the authors' scripts.
`steps-0.999` is what the poster has: momentum 0.999, a rate that stays. Nothing is chosen by these runs. Each run is
a file OUT/SCHEDULE-MOMENTUM-SEED.json and is not repeated.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ablations import variant_recipe
from experiment import RESULTS, describe, hold_out, read_options, run_each, scores_of, trained
from isd_nb.engine.launch import one_sentence
from isd_nb.sources.digits import digits
from isd_nb.studies.teacher_and_student import by_thirds, lead_sentence, leads
from table import curve_of

MOMENTA = {
    **{str(m): (m, m) for m in (0.9, 0.99, 0.999)},
    **{f"{m}_to_1": (m, 1.0) for m in (0.9, 0.99)},
}
CASES = {
    f"{schedule}-{name}": {"schedule": schedule, "momentum": list(pair)}
    for schedule in ("cosine", "steps")
    for name, pair in MOMENTA.items()
}


def run(case: str, seed: int, images: int) -> dict[str, Any]:
    "One training, with the accuracy of both encoders at twenty moments."
    train_set, test = digits(seed=200 + seed)
    train_set, validation = hold_out(train_set, "digits")
    recipe = variant_recipe(("isd", CASES[case]), images, seed, evaluations=20, entry="isd")
    method, curve, cost = trained(recipe, train_set, curve_of(train_set, validation))
    return dict(scores=scores_of(method, train_set, test), curve=curve, recipe_json=describe(recipe), **cost)


def summary(out: Path) -> str:
    "How often and by how much the teacher leads, by thirds of training, and its accuracy at the end."
    runs = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    saved = {"runs": [run | {"method": run["case"]} for run in runs]}
    lines = []
    for case in CASES:
        if found := leads(saved, case):
            end = np.mean([run["curve"][-1]["knn20_teacher"] for run in runs if run["case"] == case])
            thirds = ", ".join(f"{100 * lead:+.1f}" for lead in by_thirds(found))
            lines.append(f"{lead_sentence(case, found)} By thirds {thirds}; 20-NN of the teacher at the end {end:.3f}.")
    return "\n".join(lines)


def main() -> None:
    given = read_options(__doc__, "case", list(CASES), 62_000, RESULTS / "momentum" / "digits")
    if given.summary:
        print(summary(given.out))
        return
    run_each(given, "case", lambda case: dict(changes=CASES[case]), run, "momentum")


if __name__ == "__main__":
    with one_sentence("momentum.py", again="the same command goes on"):
        main()
