"""Runs that get more steps, several protocols in one command, and normalisation that a user knows better."""
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import isd_nb
from conftest import call
from isd_nb.cli.train import isd_train as train_command
from isd_nb.engine.finish import train_supervised
from isd_nb.engine.runs import read_metrics, read_recipe
from isd_nb.engine.training import train as train_method
from isd_nb.recipe import find_recipe
from isd_nb.sources.digits import digits

SHORT = replace(find_recipe("digits"), steps=4, batch_size=8, queue_size=16, width=4, projector=(8,), predictor=(8,),
                evaluations=1)
QUICK = ["--set", "queue_size=16", "--set", "width=4", "--set", "evaluations=1", "--set", "projector=[8]",
         "--set", "predictor=[8]", "--batch-size", "8"]
ALONE = ["--device", "cpu", "--threads", "1", "--processes", "1", "--no-figures", "--no-supervised"]
LABELLED = digits(size=16, copies=1)[0].subset(range(24))
IMAGES = replace(LABELLED, labels=None, classes=())  # no accuracy is measured: that takes longest


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A run of four steps that has ended, on 24 files without labels."
    place = tmp_path_factory.mktemp("begun")
    (place / "images").mkdir()
    for i, image in enumerate(IMAGES.images.numpy()):
        Image.fromarray(image[0]).save(place / "images" / f"{i:02}.png")
    data = f"folder:{place / 'images'}"
    fresh = ["--recipe", "digits", "--data", data, "--out", "run", "--steps", "4"]
    said = call(train_command, place, *fresh, *QUICK, *ALONE)
    assert not said.returncode, said.stderr
    return place / "run"


@pytest.fixture
def ended(begun: Path, tmp_path: Path) -> Path:
    "A copy of it."
    return Path(shutil.copytree(begun, tmp_path / "run"))


@pytest.fixture
def go_on(tmp_path: Path) -> Callable:
    "Resumes the run `run` with these options."
    return lambda *options: call(train_command, tmp_path, "--out", "run", "--resume", *options, *ALONE)


def test_a_run_that_has_ended_goes_on_with_more_steps(ended: Path, go_on: Callable) -> None:
    rows, weights = read_metrics(ended), load_file(ended / "encoder.safetensors")
    said = go_on("--steps", "8")
    assert not said.returncode, said.stderr
    now = read_metrics(ended)
    assert [row["step"] for row in now] == list(range(9)) and now[:5] == rows
    assert now[5]["learning_rate"] > now[4]["learning_rate"]
    line = next(line for line in said.stdout.splitlines() if "instead of" in line)
    assert line.startswith("8 steps instead of 4: the schedules are laid out anew over all steps, so that after step 4 ")
    assert "the learning rate goes from" in line
    assert "the teacher's momentum from" in line
    config = json.loads((ended / "config.json").read_text())
    assert (config["recipe"]["steps"], config["before"]) == (8, [{"step": 4, "epochs": None, "steps": 4}])
    assert json.loads((ended / "summary.json").read_text())["images_seen"] == 64
    after = load_file(ended / "encoder.safetensors")
    assert any(not torch.equal(value, after[name]) for name, value in weights.items())
    again = go_on()  # nothing is left to do, and nothing is noted twice
    assert not again.returncode and "instead of" not in again.stdout
    assert json.loads((ended / "config.json").read_text()) == config


def test_the_same_two_commands_give_the_same_weights(begun: Path, ended: Path, go_on: Callable, tmp_path: Path) -> None:
    other = Path(shutil.copytree(begun, tmp_path / "other"))
    assert not go_on("--set", "steps=8").returncode
    assert not call(train_command, tmp_path, "--out", "other", "--resume", "--steps", "8", *ALONE).returncode
    states = [torch.load(run / "checkpoints" / "state_00000008.pt", weights_only=True) for run in (ended, other)]
    torch.testing.assert_close(*(state["method"] for state in states), rtol=0, atol=0)


def test_epochs_take_the_place_of_steps(ended: Path, go_on: Callable) -> None:
    assert (few := go_on("--epochs", "1")).returncode and "begun with another recipe" in few.stderr
    assert not (said := go_on("--epochs", "2")).returncode, said.stderr  # three batches each
    recipe = read_recipe(ended)
    assert recipe.steps is None and recipe.epochs and read_metrics(ended)[-1]["step"] == 6
    assert not (said := go_on("--steps", "7")).returncode, said.stderr
    assert (read_recipe(ended).epochs, read_recipe(ended).steps) == (None, 7)
    assert [b["steps"] for b in json.loads((ended / "config.json").read_text())["before"]] == [4, None]


@pytest.mark.parametrize("options", ["--steps 3", "--steps 8 --seed 1", "--steps 8 --batch-size 16"])
def test_fewer_steps_and_other_settings_are_refused(options: str, ended: Path, go_on: Callable) -> None:
    before = (ended / "config.json").read_bytes()
    said = go_on(*options.split())
    assert said.returncode and "resume it without these options" in said.stderr and "--init run" in said.stderr
    assert (ended / "config.json").read_bytes() == before


def test_more_steps_need_a_checkpoint(ended: Path, go_on: Callable) -> None:
    for path in (ended / "checkpoints").glob("state_*.pt"):
        path.unlink()
    said = go_on("--steps", "8")
    assert said.returncode and "checkpoints (checkpoints/state_*.pt) are gone" in " ".join(said.stderr.split())


def test_a_run_in_python_goes_on_with_more_steps(tmp_path: Path) -> None:
    isd_nb.train(SHORT, IMAGES, tmp_path / "run", device="cpu", threads=1)
    rows = read_metrics(tmp_path / "run")
    with pytest.warns(UserWarning, match="8 steps instead of 4"):
        left = isd_nb.train(replace(SHORT, steps=8), IMAGES, tmp_path / "run", resume=True, device="cpu", threads=1)
    now = read_metrics(tmp_path / "run")
    assert left.summary["images_seen"] == 64 and len(now) == 9 and now[:5] == rows
    with pytest.raises(isd_nb.InputError, match="begun with another recipe"):
        isd_nb.train(SHORT, IMAGES, tmp_path / "run", resume=True, device="cpu", threads=1)


@pytest.mark.filterwarnings("ignore:2 steps instead of 1")
def test_the_comparison_with_labels_gets_its_share_of_more_steps(tmp_path: Path) -> None:
    for steps in (4, 8):
        train_supervised(replace(SHORT, steps=steps), LABELLED, tmp_path, steps == 8, "cpu", show=False, threads=1)
    assert read_metrics(tmp_path / "supervised")[-1]["step"] == 2


def test_studies_refuse_another_number_of_steps(tmp_path: Path) -> None:
    "Their runs are compared at a budget: none gets a schedule with a jump in it."
    train_method(SHORT, IMAGES, tmp_path / "run", device="cpu", threads=1, show=False)
    with pytest.raises(isd_nb.InputError, match="changed from steps 4 to 8"):
        train_method(replace(SHORT, steps=8), IMAGES, tmp_path / "run", resume=True, device="cpu", show=False)
