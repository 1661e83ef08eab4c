"""Out of the ordinary: labels on one side only, two commands on one file, plans of any recipe, images of any size."""
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import SMALL, TINY, call
from isd_nb.cli import isd_train as train_command
from isd_nb.cli import read_sets
from isd_nb.cli_eval import evaluate_run
from isd_nb.gpu_run import draw, finish, sample_evaluator, score_table, train_or_go_on
from isd_nb.recipes import find_recipe
from isd_nb.runs import write_json

QUICK = replace(find_recipe("digits"), steps=4, batch_size=16, queue_size=32, width=4, projector=(8,), predictor=(6,),
                evaluations=2, precision="float32")


@pytest.fixture
def half_labelled(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    "Forty images without classes to train on, and two classes to test on."
    make_folder("half/val", {"a": 10, "b": 10})
    make_folder("half", {"train": 40})
    return tmp_path / "half"


def test_training_images_without_labels_beside_a_labelled_test_set(half_labelled: Path, tmp_path: Path) -> None:
    data = ("--recipe", "digits", "--data", "folder:half")
    result = call(train_command, tmp_path, *data, "--out", "run", "--processes", "1", *TINY)
    assert result.returncode == 0, result.stderr
    assert "No labels, so no accuracy" in result.stdout
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["images_seen"] == 12 * 16 and not [name for name in summary if name.startswith(("knn", "linear"))]
    assert (tmp_path / "run/figures/neighbours.png").is_file() and (tmp_path / "run/encoder.safetensors").is_file()


@pytest.mark.parametrize("with_test", [True, False])
def test_a_notebook_for_gpus_without_labels(half_labelled: Path, tmp_path: Path, with_test: bool) -> None:
    recipe = replace(QUICK, data=f"folder:{half_labelled}")
    sets = read_sets(recipe)
    assert sets.bank.labels is None and sets.test.labels is not None
    sets = sets if with_test else replace(sets, test=None)
    assert sample_evaluator(sets.bank, sets.test) is None
    trained = train_or_go_on(recipe, sets, tmp_path / "run")
    finished = finish(recipe, sets, trained, tmp_path / "run")
    assert score_table(finished.summary) == "No labels, so no accuracy."
    assert set(finished.bank) == {"student", "teacher"} and bool(finished.test) == with_test
    draw(recipe, sets, finished, tmp_path / "run", points=10, quick=True)
    assert (tmp_path / "run/figures/map.png").is_file()


WRITER = """
import sys
from isd_nb.cli_eval import Ledger
ledger = Ledger(sys.argv[1], {"power": 2})
print("begun", flush=True)
sys.stdin.readline()
for i in range(40):
    ledger.row({"who": sys.argv[2], "i": i}, lambda: {"y": i * i})
"""


def test_two_commands_fill_one_file_side_by_side(tmp_path: Path) -> None:
    place = tmp_path / "eval" / "squares.json"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    both = [subprocess.Popen([sys.executable, "-c", WRITER, place, who], **pipes) for who in ("teacher", "student")]
    assert [writer.stdout.readline() for writer in both] == ["begun\n"] * 2  # both have read the empty file
    for writer in both:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in both:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    rows = json.loads(place.read_text())["rows"]
    wanted = [(who, i) for who in ("student", "teacher") for i in range(40)]
    assert sorted((row["who"], row["i"]) for row in rows) == wanted
    assert sorted(p.name for p in place.parent.iterdir()) == [".lock", "squares.json"]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "values.json"
    write_json(place, {"a": 1})
    with pytest.raises(TypeError):
        write_json(place, {"a": object()})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_json(place, {"a": 2})
    assert json.loads(place.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [place]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("odd")
    result = call(train_command, place, "--out", "run", "--no-figures", "--no-supervised", "--processes", "1", *TINY)
    assert result.returncode == 0, result.stderr
    return place / "run"


def test_more_draws_and_more_shares_keep_the_rows_that_are_there(run: Path) -> None:
    def ask(seeds: int, *fractions: float) -> list[dict]:
        settings = dict(seeds=seeds, fractions=fractions, epochs=1, min_steps=5)
        return evaluate_run(run, "few-labels", encoder="student", device="cpu", **settings)["rows"]

    def saved() -> list[dict]:
        return json.loads((run / "eval/few-labels.json").read_text())["rows"]
    first = ask(2, 0.05)
    marked = [row | {"top1": -1.0} for row in first]  # a row computed anew would not have this
    values = json.loads((run / "eval/few-labels.json").read_text())
    write_json(run / "eval/few-labels.json", values | {"rows": marked})
    assert ask(3, 0.05)[:2] == marked and len(saved()) == 3
    wider = ask(2, 0.05, 0.1)
    assert [(row["fraction"], row["seed"]) for row in wider] == [(0.05, 0), (0.05, 1), (0.1, 0), (0.1, 1)]
    assert wider[:2] == marked
    assert ask(1, 0.1) == wider[2:3], "only what was asked for is answered"
    assert len(saved()) == 5, "and what others asked for stays"
    other = dict(seeds=1, fractions=(0.05,), epochs=1, min_steps=6)  # another schedule is another question
    (row,) = evaluate_run(run, "few-labels", encoder="student", device="cpu", **other)["rows"]
    assert row["top1"] >= 0 and saved() == [row]


@pytest.mark.parametrize("settings", [
    ("--method", "supervised"),
    ("--set", "image_size=37", "--set", "batch_norm_splits=2"),  # room for 47 images, which are not cut in two
    ("--set", "image_size=200", "--set", "batch_norm_splits=4"),  # room for one
])
def test_a_dry_run_measures_any_recipe(settings: tuple[str, ...], small: Path, tmp_path: Path) -> None:
    result = call(train_command, tmp_path, *SMALL, "--batch-size", "64", *settings, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "measured here, on the CPU" in result.stdout
