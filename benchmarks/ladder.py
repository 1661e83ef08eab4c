"""From SimCLR to ISD in steps of one change: what separates the two, on digits.

    python benchmarks/ladder.py --images 187000
    python benchmarks/ladder.py --summary

Every step has the settings that the shared search chose for SimCLR (results/search/digits/chosen.json): learning
rate, views, heads, batch norm and temperature. What SimCLR has not, the length of the queue and the teacher's
momentum and temperature, is ISD's of the same file's beginning (search.py, START). Splits, seeds and scores are
those of ablations.py: `digits(seed=200 + SEED)`, 500 test digits, the same for all steps of a seed. Nothing is
chosen by these runs. Each run is a file OUT/STEP-SEED.json and is not repeated.
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

STEPS: dict[str, tuple[str, str, dict[str, Any]]] = {  # what is new, the method, its settings
    "simclr": ("both views learn", "simclr", {}),
    "one_gradient": ("the gradient stops at the other view", "variants:OneGradient", {}),
    "one_direction": ("one view is the query, the other the key", "variants:InBatchOwnKeys", {}),
    "teacher": ("the key is a moving average's", "variants:InBatch", {}),
    "queue": ("anchors come from a queue (MoCo)", "variants:OneHot", {}),
    "soft_label": ("the label is the teacher's (ISD)", "isd", {}),
    "both_directions": ("ISD with both directions", "isd", {"options.symmetric": True}),
}


def run(step: str, seed: int, images: int) -> dict[str, Any]:
    "One training and its scores."
    train_set, test = digits(seed=200 + seed)
    train_set, _ = hold_out(train_set, "digits")
    _, method, changes = STEPS[step]
    settings = json.loads((RESULTS / "search" / "digits" / "chosen.json").read_text())["simclr"]["settings"]
    recipe = entry_recipe(method, base_of("digits"), images, settings | {"predictor": []} | changes, seed)
    trained_, _, cost = trained(recipe, train_set)
    return dict(scores=scores_of(trained_, train_set, test), recipe_json=describe(recipe), **cost)


def summary(out: Path) -> str:
    "Means over seeds, and what each step changes, seed by seed."
    lines, before = [f"{'':<44}seeds  20-NN  linear   step (20-NN, each seed)"], dict[int, float]()
    for step, (what, *_) in STEPS.items():
        runs = {(d := json.loads(p.read_text()))["seed"]: d for p in sorted(out.glob(f"{step}-[0-9]*.json"))}
        best = {s: d["scores"][chosen_encoder(d["scores"])] for s, d in runs.items()}
        if best:
            gaps = ", ".join(f"{b['knn20'] - before[s]:+.3f}" for s, b in best.items() if s in before)
            mean = [np.mean([b[name] for b in best.values()]) for name in ("knn20", "linear")]
            lines.append(f"{what:<44}{len(best):>4}   {mean[0]:.3f}  {mean[1]:.3f}    {gaps}")
            before = {s: b["knn20"] for s, b in best.items()}
    return "\n".join(lines)


def main() -> None:
    given = read_options(__doc__, "step", list(STEPS), 187_000, RESULTS / "ladder" / "digits")
    if given.summary:
        print(summary(given.out))
        return
    run_each(given, "step", lambda step: dict(zip(("method", "changes"), STEPS[step][1:])), run, "ladder")


if __name__ == "__main__":
    with one_sentence("ladder.py", again="the same command goes on"):
        main()
