"""What leaves the machine names no place on it, and what is shared or shown needs no second reading of the manual."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, call
from PIL import Image
from torch.testing import assert_close

import isd_nb
from isd_nb.cli.explore import isd_explore
from isd_nb.cli.export import isd_export
from isd_nb.cli.train import isd_train
from isd_nb.data import ImageSet
from isd_nb.encoders import load_encoder
from isd_nb.engine.export import to_share
from isd_nb.engine.model_card import model_card, write_model_card
from isd_nb.engine.state import save_encoders
from isd_nb.errors import refusal
from isd_nb.methods.building import build_method
from isd_nb.recipe import Recipe

SHORT = Recipe("short", batch_size=8, queue_size=16, width=4, steps=2, evaluations=1, image_size=16)


def photographs(place: Path, count: int = 40) -> Path:
    "A folder of two classes, 16 x 16 pixels."
    rng = np.random.default_rng(0)
    for i in range(count):
        path = place / ("dark", "light")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((rng.integers(0, 128, (16, 16, 3)) + 100 * (i % 2)).astype(np.uint8)).save(path)
    return place


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "What the command leaves of a folder that is named by its whole path."
    place = tmp_path_factory.mktemp("home")
    folder = photographs(place / "someone" / "birds")
    done = call(isd_train, place, "--data", f"folder:{folder}", "--out", "run", *TINY, "--steps", "2", "--set",
                "evaluations=1", "--no-figures", "--no-supervised", "--processes", "1")
    assert done.returncode == 0, done.stderr
    return place / "run"


def names(path: Path, place: Path) -> bool:
    "Whether a file names a place on this machine."
    return os.fsencode(place) in path.read_bytes()


def test_the_command_leaves_a_card_without_the_place_of_its_images(run: Path) -> None:
    card = (run / "README.md").read_text()
    assert "`folder:birds`" in card and "| teacher |" in card and not names(run / "README.md", run.parent)
    assert "someone" in load_encoder(run).metadata["recipe"]["data"], "a run goes on with the images it was begun with"


def test_python_and_the_command_show_and_leave_the_same(run: Path, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    data = load_encoder(run).metadata["recipe"]["data"]
    isd_nb.train(SHORT, data, tmp_path / "run", device="cpu", threads=1, show=True)
    said = capsys.readouterr().out
    assert "tiny is trained on images of about 16 pixels" in said and f"{data}: 32 " in said
    assert not names(tmp_path / "run/README.md", run.parent)
    of_command, of_python = (load_encoder(place).metadata for place in (run, tmp_path / "run"))
    assert of_command.keys() == of_python.keys() and "knn20_teacher" in of_python["scores"]


@pytest.mark.parametrize("out", ["birds", "birds.safetensors"])
def test_a_run_is_written_without_places_to_be_passed_on(out: str, run: Path, tmp_path: Path) -> None:
    done = call(isd_export, tmp_path, run, "--out", out, "--licence", "mit")
    assert done.returncode == 0 and out in done.stdout, done.stderr
    weights = tmp_path / ("birds/encoder.safetensors" if out == "birds" else out)
    card = weights.with_name("README.md")
    assert {*weights.parent.iterdir()} == {weights, card}
    assert not names(weights, run.parent) and not names(card, run.parent)
    assert f'load_encoder("{weights.name}"' in card.read_text() and "license: mit" in card.read_text()
    images = torch.rand(3, 3, 16, 16)
    for which in ("teacher", "student"):
        assert_close(load_encoder(weights, which)(images), load_encoder(run, which)(images))


def test_what_is_passed_on_takes_the_place_of_nothing_else(run: Path, tmp_path: Path) -> None:
    before = (run / "encoder.safetensors").read_bytes()
    (tmp_path / "README.md").write_text("# My project\n")
    loose = tmp_path / "x.safetensors"
    for out, words in ((run, "run's own file"), (tmp_path, "no model card"), (loose, "no model card")):
        done = call(isd_export, tmp_path, run, "--out", out)
        assert done.returncode and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert "finished run" in call(isd_export, tmp_path, "shipped:digits", "--out", "x.safetensors").stderr
    assert "--size" in call(isd_export, tmp_path, run, "--out", "new", "--size", "32").stderr
    assert (run / "encoder.safetensors").read_bytes() == before and [*tmp_path.iterdir()] == [tmp_path / "README.md"]
    with pytest.warns(UserWarning, match="is kept"):
        write_model_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My project\n"


def saved(place: Path, recipe: Recipe) -> Path:
    "A run's directory as far as sharing needs it."
    place.mkdir()
    images = ImageSet(torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8))
    save_encoders(place / "encoder.safetensors", build_method(recipe, images), recipe, images)
    return place


def test_a_guide_is_passed_on_by_its_name(run: Path, tmp_path: Path) -> None:
    small = saved(tmp_path / "small", replace(SHORT, method="compress", options={"guide": str(run)}))
    assert not [path for path in to_share(small, tmp_path / "shared") if names(path, run.parent)]
    assert '"guide": "run"' in model_card(small)


def test_a_folder_whose_name_is_not_utf8_has_a_card(tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/v\xf6gel")
    card = write_model_card(place := saved(tmp_path / "run", replace(SHORT, data=f"folder:{folder}")))
    assert "`folder:v\\xf6gel`" in card.read_text(encoding="utf-8")
    assert "is a file" in refusal(to_share, place, place / "encoder.safetensors")


def test_weights_without_a_run_are_explored_in_a_notebook(run: Path, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isd_nb.explore.gallery.layout", lambda features, start=None: np.asarray(features)[:, :2])
    opened: list[Path] = []
    monkeypatch.setattr("isd_nb.cli.explore.open_lab", lambda notebook, more: opened.append(notebook))
    monkeypatch.setattr("isd_nb.cli.explore.check_lab", lambda: None)
    (tmp_path / "a.safetensors").write_bytes((run / "encoder.safetensors").read_bytes())
    data = f"folder:{run.parent / 'someone/birds'}"
    wanted = ["--encoder", "a.safetensors", "--encoder", run, "--data", data, "--limit", "8"]
    done = call(isd_explore, tmp_path, *wanted)
    assert done.returncode == 0 and str(tmp_path / "explorer.ipynb") in done.stdout, done.stderr
    assert opened == [tmp_path / "explorer.ipynb"]
    cell = json.loads(opened[0].read_text())["cells"][1]["source"]
    monkeypatch.chdir("/")  # the kernel may start anywhere
    exec(cell, found := {})
    assert found["explorer"].gallery.encoders == ["a.safetensors", "run"] and len(found["explorer"].gallery.images) == 8
    again = call(isd_explore, tmp_path, *wanted[:2], "--data", data, "--no-open")
    assert again.returncode == 0 and len(json.loads(opened[0].read_text())["cells"]) == 2 and len(opened) == 1
    absent, twice = ["--encoder", "b.pth", "--data", data], wanted[:2] * 2 + wanted[4:]
    for arguments, words in ((absent, "b.pth"), (twice, "that differ")):
        done = call(isd_explore, tmp_path, *arguments)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    opened[0].write_text("mine")
    assert "is not overwritten" in call(isd_explore, tmp_path, *wanted).stderr and opened[0].read_text() == "mine"


@pytest.mark.parametrize("given", [False, True])
def test_images_of_python_are_described_before_training(given: bool, capsys: pytest.CaptureFixture[str],
                                                        tmp_path: Path) -> None:
    images = ImageSet(torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8), torch.arange(20) % 2)
    for show in (True, False):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyError):  # nothing is trained here
            patch.setattr("isd_nb.engine.whole.train_method", lambda *_, found, **__: {}["nothing" if found else found])
            isd_nb.train(SHORT, images, tmp_path, images.subset(range(4)) if given else None, show=show)
        said = capsys.readouterr().out
        assert ("16 images of 2 classes" in said) is (show and not given)
        assert ("20 images of 2 classes" in said and "given in Python" in said) is (show and given)


def test_the_module_for_lightning_trains() -> None:
    pytest.importorskip("lightning", reason="its example needs: pip install 'isd_nb[lightning]'")
    example = Path(__file__).parent.parent / "examples" / "with_lightning.py"
    done = subprocess.run([sys.executable, example, "2"], capture_output=True, text=True, check=True, timeout=300)
    assert "step 2: loss" in done.stdout
