"""benchmarks/search.py: no digit on both sides of the split, no trial made twice, and the best trials go on."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import call
from isd_nb.errors import InputError
from isd_nb.sources.splits import stratified
from isd_nb.engine.launch import one_sentence
from isd_nb.studies.compare import read_settings
from isd_nb.sources.digits import digits

FOLDER = Path(__file__).parent.parent / "benchmarks"
RUNGS = ((32, 3), (64, 1))


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    "The script as a module, with two rounds of one and two steps."
    monkeypatch.syspath_prepend(str(FOLDER))
    script = importlib.import_module("search")
    small = dict(width=2, projector=(8,), batch_size=32, queue_size=32, precision="float32")
    monkeypatch.setitem(script.RUNGS, "digits", RUNGS)
    monkeypatch.setattr(script, "base_of", lambda name, full=script.base_of: replace(full(name), **small))
    monkeypatch.setitem(script.COMMON, "digits", {"learning_rate": [0.1, 0.2], "weight_decay": [1e-4]})
    monkeypatch.setitem(script.SPACES, "isd", {"momentum": [[0.8, 1.0], [0.9, 1.0]]})
    monkeypatch.setattr(
        script, "scores_of", lambda *sets: {"teacher": dict(knn1=0.1, knn20=0.5, linear=0.7), "student": {}}
    )
    return script


def test_no_original_is_on_both_sides(search: ModuleType) -> None:
    images = digits()[0]
    assert len(images) == 4 * 1297
    rows = {
        side: {i // 4 for i in found}
        for side, found in zip(("train", "held"), sides(search, len(images), images.labels))
    }
    assert not rows["train"] & rows["held"] and len(rows["held"]) == 260 and len(rows["train"]) == 1037
    train_set, held = search.hold_out(images, "digits")
    assert (len(train_set), len(held)) == (4 * 1037, 4 * 260), "all copies of an original are on its side"
    share = held.labels.bincount() / images.labels.bincount()
    assert (share - 260 / 1297).abs().max() < 0.02, "each class has the same share"
    assert torch.equal(held.labels, search.hold_out(images, "digits")[1].labels), "the split does not change"


def test_the_final_table_scores_no_digit_that_chose_a_setting(search: ModuleType) -> None:
    "The canvas hides which digit an image shows, so originals are followed by their numbers."
    table = importlib.import_module("table")
    train_set = digits()[0]
    targets = table.load_digits().target
    others = np.setdiff1d(np.arange(len(targets)), table.test_originals(0), assume_unique=True)
    order = table.train_test_split(np.arange(len(targets)), test_size=500, stratify=targets, random_state=0)[0]
    assert set(order) == set(others) and (targets[order].repeat(4) == train_set.labels.numpy()).all()
    held = order[sorted({i // 4 for i in sides(search, len(train_set), train_set.labels)[1]})]
    for split in (101, 102, 103):
        scored = table.test_originals(split)[table.never_chosen_by(split).numpy()]
        assert len(scored) > 200 and not np.isin(scored, [*held, *table.test_originals(0)]).any()
        final = table.sets_of("digits", "digits", split)[2]
        assert (targets[scored] == final.labels.numpy()).all()


def sides(search: ModuleType, count: int, labels: torch.Tensor) -> tuple[list[int], list[int]]:
    "The rows on either side, found through images that hold their own number in two bytes."
    numbers = torch.arange(count)
    pixels = torch.zeros(count, 1, 1, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = (numbers // 256).to(torch.uint8), (numbers % 256).to(torch.uint8)
    found = search.hold_out(type(digits()[0])(pixels, labels), "digits")
    return tuple((s.images[:, 0, 0, 0].long() * 256 + s.images[:, 0, 0, 1].long()).tolist() for s in found)


def test_every_image_of_other_sets_is_an_original(search: ModuleType) -> None:
    labels = torch.arange(200) % 4
    train_set, held = search.hold_out(
        type(digits()[0])(torch.zeros(200, 1, 2, 2, dtype=torch.uint8), labels), "folder:some"
    )
    assert held.labels.bincount().tolist() == [5, 5, 5, 5] and len(train_set) == 180


def test_the_best_go_on(search: ModuleType) -> None:
    asked = []

    def run(trial: int, images: int) -> float:
        asked.append((trial, images))
        return {0: 0.1, 1: 0.9, 2: 0.5, 3: 0.9, 4: 0.2}[trial] - (0.6 if (trial, images) == (1, 20) else 0)

    assert search.halve(((10, 5), (20, 3), (40, 1)), run) == 3
    assert asked == [(t, 10) for t in range(5)] + [(1, 20), (3, 20), (2, 20), (3, 40)], (
        "a tie goes to the smaller number"
    )


def test_the_first_trial_is_the_recipe_and_all_draw_from_the_space(search: ModuleType) -> None:
    assert search.settings_of("isd", 0, "digits") == {}
    for trial in range(1, 9):
        drawn = search.settings_of("isd", trial, "digits")
        assert drawn == search.settings_of("isd", trial, "digits"), "the same number draws the same settings"
        space = search.COMMON["digits"] | search.SPACES["isd"]
        assert drawn.keys() == space.keys() and all(value in space[name] for name, value in drawn.items())


def test_finished_trials_are_read(search: ModuleType, tmp_path: Path) -> None:
    def main() -> None:
        with one_sentence("search.py"):
            search.main()
        raise SystemExit(0)

    ask = ("--methods", "isd", "--out", "found")
    first = call(main, tmp_path, *ask)
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.splitlines()) == 3 + 1 + 1 and "trial 0 is chosen" in first.stdout
    files = {p: p.read_bytes() for p in sorted((tmp_path / "found/digits/isd").iterdir())}
    assert [p.name for p in files] == ["00-32.json", "00-64.json", "01-32.json", "02-32.json"]
    one = json.loads(files[tmp_path / "found/digits/isd/00-64.json"])
    assert one["settings"] == {"predictor": []} and one["images_seen"] == 64 and one["score"] == 0.6 and one["command"]
    again = call(main, tmp_path, *ask)
    assert again.stdout.splitlines() == ["isd: trial 0 is chosen"], "a finished trial was made again"
    assert files == {p: p.read_bytes() for p in files}
    summary = call(main, tmp_path, *ask, "--summary")
    assert "isd" in summary.stdout
    assert read_settings(tmp_path / "found/digits/chosen.json") == {"isd": ({"predictor": []}, 3)}, (
        "isd_compare --settings reads it"
    )


def test_what_cannot_work_is_one_sentence(search: ModuleType, tmp_path: Path) -> None:
    def main() -> None:
        with one_sentence("search.py"):
            search.main()
        raise SystemExit(0)

    for ask, words in (
        (("--methods", "isdd"), "unknown method 'isdd': did you mean 'isd'?"),
        (("--recipe", "cifar"), "unknown recipe 'cifar': did you mean 'cifar10_small'?"),
        (("--methods", "isd", "--data", "folder:nowhere"), "nowhere is not a folder"),
    ):
        result = call(main, tmp_path, "--out", "found", *ask)
        assert result.returncode == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1
    place = tmp_path / "found/digits/isd/00-32.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(
        json.dumps(dict(recipe="digits", data="digits", entry="isd", trial=0, budget=32, seed=7, score=1.0))
    )
    result = call(main, tmp_path, "--out", "found", "--methods", "isd")
    assert result.returncode == 2 and "was made with another seed (7, now 0)" in result.stderr


def test_stratified_shares_what_rounding_leaves() -> None:
    chosen = stratified(np.repeat(np.arange(3), (10, 11, 12)), 8, seed=0)
    assert chosen.sum() == 8


@pytest.mark.parametrize(("entry", "settings", "kept"), [
    ("moco_v2", ["batch_norm_splits=2", "batch_size=16"], dict(batch_norm_splits=2, steps=4)),
    ("simsiam", ["projector=[8]"], dict(projector=(8,), steps=2)),
    ("isd", ["predictor=[8]"], dict(predictor=(8,))),  # an entry without one
])
def test_a_setting_of_a_trial_by_hand_is_in_its_recipe(
    search: ModuleType, entry: str, settings: list[str], kept: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    "MoCo v2 changes the parts of batch norm, SimSiam the projector; what a trial states is laid on afterwards."
    script, seen = importlib.import_module("by_hand"), []
    monkeypatch.setattr(script, "base_of", search.base_of)
    monkeypatch.setattr(script, "load_images", lambda *given: [None])
    monkeypatch.setattr(script, "hold_out", lambda *given: (None, []))
    monkeypatch.setattr(script, "trained", lambda recipe, images: seen.append(recipe) or (None, [], {}))
    monkeypatch.setattr(script, "scores_of", search.scores_of)
    command = ["--entry", entry, "--images", "64", "--out", str(tmp_path), "--trial", "mine", *settings]
    monkeypatch.setattr("sys.argv", ["by_hand.py", *command])
    script.main()
    assert {name: getattr(seen[0], name) for name in kept} == kept and seen[0].method == entry


@pytest.mark.parametrize("setting", ["steps=3", "epochs=2", "seed=1"])
def test_a_trial_by_hand_refuses_what_its_options_set(search: ModuleType, setting: str) -> None:
    given = SimpleNamespace(entry="isd", images=64, seed=0, method=None)
    with pytest.raises(InputError, match=f"--trial takes no {setting}: --images"):
        importlib.import_module("by_hand").recipe_of(given, search.base_of("digits"), [setting])
