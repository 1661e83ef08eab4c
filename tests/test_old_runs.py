"""What was made before the package had rooms: a run of 8 steps on digits, and one that was stopped half-way."""
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import call
from isd_nb.cli.explore import isd_explore
from isd_nb.cli.train import isd_train as train_command
from isd_nb.encoders import load_encoder
from isd_nb.engine.evaluate_run import evaluate_run
from isd_nb.engine.runs import read_metrics, read_recipe

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def old(tmp_path: Path) -> Callable[[str], Path]:
    "A copy of a run, for commands write into it."
    return lambda name: Path(shutil.copytree(FIXTURES / name, tmp_path / name))


def test_an_old_run_is_read(old: Callable[[str], Path]) -> None:
    run = old("old_run")
    recipe, rows = read_recipe(run), read_metrics(run)
    assert (recipe.name, recipe.width, dict(recipe.options)) == ("digits", 2, {})
    assert [row["step"] for row in rows] == list(range(9)) and rows[8]["knn20_teacher"] == 0.422
    assert load_encoder(run)(torch.rand(3, 1, 16, 16)).shape == (3, 16)


def test_an_old_run_is_evaluated(old: Callable[[str], Path]) -> None:
    run = old("old_run")
    summary = json.loads((run / "summary.json").read_text())
    for row in evaluate_run(run, "knn", device="cpu")["rows"]:
        assert row["20-nn"] == pytest.approx(summary[f"knn20_{row['encoder']}"], abs=0.006)  # three images


def test_an_old_run_goes_on(old: Callable[[str], Path]) -> None:
    "Stopped after 4 of 8 steps, it ends as the one that was not."
    run = old("old_half")
    result = call(train_command, run.parent, "--out", run.name, "--resume", "--no-figures", "--no-supervised",
                  "--device", "cpu", "--processes", "1")
    assert result.returncode == 0, result.stderr
    for which in ("teacher", "student"):
        ended, straight = (load_encoder(place, which).state_dict() for place in (run, FIXTURES / "old_run"))
        torch.testing.assert_close(ended, straight, rtol=1e-3, atol=1e-4)
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(9)) and "threads" in rows[8] and "threads" not in rows[4]


def test_an_old_run_is_explored(old: Callable[[str], Path]) -> None:
    run = old("old_run")
    result = call(isd_explore, run.parent, run, "--html", "page.html", "--limit", "30", "--moments", "1")
    assert result.returncode == 0, result.stderr
    assert (run.parent / "page.html").stat().st_size > 10_000
