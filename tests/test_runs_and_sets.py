"""A run and its images: which images are a run's, which are not, and what states so."""
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import call
from isd_nb.cli.train import isd_train
from isd_nb.data import ImageSet
from isd_nb.engine.training import train
from isd_nb.engine.whole import train as train_whole
from isd_nb.errors import refusal
from isd_nb.methods.building import read_sets
from isd_nb.protocols.storage import write_json
from isd_nb.recipe import Recipe
from isd_nb.sources.door import Sets, load_sets

QUICK = Recipe("quick", steps=4, evaluations=1, batch_size=8, queue_size=16, width=4, projector=(6,), predictor=(),
               precision="float32")

SHORT = ["--steps", "4", "--batch-size", "8", "--set", "queue_size=16", "--set", "evaluations=1", "--set", "width=4",
         "--set", "projector=[8]", "--set", "predictor=[8]", "--threads", "1", "--processes", "1", "--device", "cpu",
         "--recipe", "digits", "--no-supervised", "--no-figures"]


def trained(place: Path, *arguments: str) -> str:
    "Train in a folder, for four steps; what was printed."
    result = call(isd_train, place, *arguments, *SHORT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def draw(figure: Path) -> None:
    "A picture, as a run leaves them; to draw those of a run takes longer."
    figure.parent.mkdir(exist_ok=True)
    Image.new("RGB", (20, 20)).save(figure)


def test_a_run_inside_its_image_folder_is_no_part_of_the_set(make_folder: Callable[..., Path]) -> None:
    flat = make_folder("flat", {".": 30})
    first = trained(flat, "--data", "folder:.")
    draw(flat / "runs/digits-isd-1/figures/map.png")
    second = trained(flat, "--data", "folder:.")
    assert "30 images without labels" in first and "30 images without labels" in second
    assert "1 runs of isd_train (in runs/ 1)" in second
    assert "30 images without labels" in trained(flat, "--data", "folder:.", "--out", "runs/digits-isd-1", "--resume")


def go(place: str, out: Path, resume: bool = False) -> Sets:
    "Train on what a folder holds, and measure nothing."
    recipe = replace(QUICK, data=f"folder:{place}")
    sets = read_sets(recipe, out.parent / "cache")
    train(recipe, sets.train, out, resume=resume, device="cpu", show=False, found=sets.found.to_json(), test=sets.test)
    return sets


def test_a_run_among_class_folders_is_no_class_and_resumes(make_folder: Callable[..., Path]) -> None:
    place = make_folder("set", {"a": 12, "b": 12})
    first = go(place, place / "b/run")
    draw(place / "b/run/figures/map.png")
    again = go(place, place / "mine")
    assert (len(again.train), again.train.classes) == (len(first.train), ("a", "b"))
    assert "1 runs of isd_train (in b/ 1)" in str(again.found)
    go(place, place / "b/run", resume=True)


def test_runs_beside_the_splits_are_counted(small: Path) -> None:
    run = small / "runs/one"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text('{"recipe": {}}')
    draw(run / "map.png")
    sets = load_sets(f"folder:{small}", 8, root=small.parent)
    assert sets.train.classes == ("a", "b") and sets.found.left_out["runs of isd_train"] == {"runs": 1}


def test_a_folder_with_a_configuration_of_another_program_is_a_class(make_folder: Callable[..., Path]) -> None:
    place = make_folder("set", {"a": 5, "b": 5})
    (place / "b/checkpoints").mkdir()
    for text, classes in (('{"model_type": 1}', "ab"), ('{"recipe": {}}', "a"), ('{"model_type": 2}', "ab")):
        (place / "b/moved").write_text(text)
        (place / "b/moved").rename(place / "b/config.json")  # the folder's time changes, as when a file comes
        assert "".join(load_sets(f"folder:{place}", 8, root=place.parent).train.classes) == classes


def pictures(count: int = 24, seed: int = 0, classes: tuple[str, ...] = ("a", "b"), channels: int = 1) -> ImageSet:
    "Images that are given in Python, of each class as many."
    pixels = torch.randint(256, (count, channels, 16, 16), generator=torch.Generator().manual_seed(seed))
    return ImageSet(pixels.to(torch.uint8), torch.arange(count) % len(classes), classes)


def overwrite(folder: Path) -> None:
    "Other images under the same names."
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        Image.fromarray(np.full((20, 20, 3), 5 + i, np.uint8)).save(path)


def test_a_run_goes_on_with_its_own_test_images_only(small: Path, tmp_path: Path) -> None:
    go(str(small), tmp_path / "run")
    go(str(small), tmp_path / "run", resume=True)
    train(replace(QUICK, data=f"folder:{small}"), read_sets(replace(QUICK, data=f"folder:{small}"), tmp_path).train,
          tmp_path / "run", resume=True, device="cpu", show=False)  # what is tested on is not stated
    overwrite(small / "test")
    assert "other images to test on: 20 images of 2 classes then, as many but others now" in refusal(
        go, str(small), tmp_path / "run", resume=True)


@pytest.fixture(scope="module")
def given_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A run on images that are given in Python."
    out = tmp_path_factory.mktemp("given") / "run"
    train_whole(QUICK, pictures(), out, pictures(8, 1), device="cpu")
    return out


def test_test_images_given_in_python_are_those_of_the_run(given_run: Path) -> None:
    kept = (given_run / "summary.json").read_bytes()
    said = refusal(train_whole, QUICK, pictures(), given_run, pictures(8, 2), True, "cpu")
    assert "other images to test on: 8 images of 2 classes then, as many but others now" in said
    assert (given_run / "summary.json").read_bytes() == kept


def test_a_run_without_a_note_of_its_test_images_goes_on_and_states_it(small: Path, tmp_path: Path) -> None:
    go(str(small), tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    del config["tested"]
    write_json(tmp_path / "run/config.json", config)
    with pytest.warns(UserWarning, match="without a note of its images to test on"):
        go(str(small), tmp_path / "run", resume=True)
