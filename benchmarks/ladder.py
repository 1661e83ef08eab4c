"""From SimCLR to ISD in steps of one change: what separates the two, on digits.

    python benchmarks/ladder.py --images 187000
    python benchmarks/ladder.py --summary

Every step has the settings that the shared search chose for SimCLR (results/search/digits/chosen.json: learning rate,
views, batch norm and temperature) but for the projector, which has a hidden layer of 256 and 128 dimensions, as an
earlier search chose it. What SimCLR has not, the length of the queue and the teacher's momentum and temperature, is
ISD's at the search's beginning (search.py, START). Splits, seeds and scores are
those of ablations.py: `digits(seed=200 + SEED)`, 500 test digits, the same for all steps of a seed. Nothing is
chosen by these runs. Each run is a file OUT/STEP-SEED.json and is not repeated. The teacher is scored where the keys
are its own, else the student.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiment import (
    RESULTS, chosen_encoder, describe, entry_recipe, hold_out, read_options, run_each, scores_of, trained
)
from isd_nb.engine.launch import one_sentence
from isd_nb.sources.digits import digits
from search import base_of

PROJECTOR = {"projector": [256, 128]}
SHARPER = {"student_temperature": 0.1}  # ISD's; the search chose 0.3 for SimCLR
STEPS: dict[str, tuple[str, str, str, dict[str, Any]]] = {  # what is new, the step before, the method, its settings
    "simclr": ("both views learn", "", "simclr", {}),
    "one_gradient": ("the gradient stops at the other view", "simclr", "variants:OneGradient", {}),
    "one_gradient-twice_the_rate": ("the same, learning rate doubled", "simclr", "variants:OneGradient",
                                    {"learning_rate": "twice"}),
    "one_direction": ("one view is the query, the other the key", "one_gradient", "variants:InBatchOwnKeys", {}),
    "teacher": ("the key is a moving average's", "one_direction", "variants:InBatch", {}),
    "queue": ("anchors come from a queue (MoCo)", "teacher", "variants:OneHot", {}),
    "queue-sharper": ("the same, student temperature 0.1", "queue", "variants:OneHot", SHARPER),
    "soft_label": ("the label is the teacher's (ISD)", "queue", "isd", {}),
    "soft_label-sharper": ("the same, student temperature 0.1", "queue-sharper", "isd", SHARPER),
    "both_directions": ("ISD with both directions", "soft_label", "isd", {"options.symmetric": True}),
    "both_directions-sharper": ("the same, student temperature 0.1", "soft_label-sharper", "isd",
                                {"options.symmetric": True, **SHARPER}),
}
OWN_KEYS = ("one_direction",)  # their teacher computes nothing: its batch norm has seen no image


def run(step: str, seed: int, images: int) -> dict[str, Any]:
    "One training and its scores."
    train_set, test = digits(seed=200 + seed)
    train_set, _ = hold_out(train_set, "digits")
    _, _, method, changes = STEPS[step]
    settings = json.loads((RESULTS / "search" / "digits" / "chosen.json").read_text())["simclr"]["settings"] | PROJECTOR
    if changes.get("learning_rate") == "twice":
        changes = changes | {"learning_rate": 2 * settings["learning_rate"]}
    recipe = entry_recipe(method, base_of("digits"), images, settings | {"predictor": []} | changes, seed)
    trained_, _, cost = trained(recipe, train_set)
    return dict(scores=scores_of(trained_, train_set, test), recipe_json=describe(recipe), **cost)


def scores_by_seed(out: Path, step: str) -> dict[int, dict[str, float]]:
    "Of the encoder that is evaluated."
    runs = [json.loads(path.read_text()) for path in sorted(out.glob(f"{step}-[0-9]*.json"))]
    return {d["seed"]: d["scores"]["student" if step in OWN_KEYS else chosen_encoder(d["scores"])] for d in runs}


def summary(out: Path) -> str:
    "Means over seeds, and what each step changes from the step before it, seed by seed."
    lines, found = [f"{'':<44}seeds  20-NN  linear   step (20-NN, each seed)"], dict[str, dict[int, dict[str, float]]]()
    for step, (what, before, *_) in STEPS.items():
        best = found[step] = scores_by_seed(out, step)
        if best:
            base = found.get(before, {})
            gaps = ", ".join(f"{b['knn20'] - base[s]['knn20']:+.3f}" for s, b in best.items() if s in base)
            mean = [np.mean([b[name] for b in best.values()]) for name in ("knn20", "linear")]
            lines.append(f"{what:<44}{len(best):>4}   {mean[0]:.3f}  {mean[1]:.3f}    {gaps}")
    return "\n".join(lines)


def main() -> None:
    given = read_options(__doc__, "step", list(STEPS), 187_000, RESULTS / "ladder" / "digits")
    if given.summary:
        print(summary(given.out))
        return
    run_each(given, "step", lambda step: dict(zip(("method", "changes"), STEPS[step][2:])), run, "ladder")


if __name__ == "__main__":
    with one_sentence("ladder.py", again="the same command goes on"):
        main()
