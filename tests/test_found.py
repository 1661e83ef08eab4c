"""What was found among images is said by every command and kept by every run; of one class there is no accuracy."""
import json
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import call
from PIL import Image

import isd_nb
from isd_nb.cli.embed import isd_embed
from isd_nb.cli.evaluate import isd_eval
from isd_nb.cli.explore import isd_explore
from isd_nb.cli.pack import isd_pack, pack
from isd_nb.engine.evaluate_run import OneClass, evaluate_run
from isd_nb.engine.state import save_encoders
from isd_nb.engine.training import train
from isd_nb.errors import refusal
from isd_nb.recipe import find_recipe, replace
from isd_nb.sources.door import load_sets
from isd_nb.studies.compare import Task, work

TINY = replace(find_recipe("digits"), steps=4, batch_size=8, queue_size=16, width=4, projector=(8,), predictor=(8,),
               evaluations=1, image_size=8)


def pictures(folder: Path, *classes: str, each: int = 6, deep: int = 0) -> Path:
    "A small folder for each class; `deep`: of 16 bits, up to this value."
    rng = np.random.default_rng(len(str(folder)))
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            pixels = rng.integers(0, deep or 256, (12, 12) if deep else (12, 12, 3))
            Image.fromarray(pixels.astype(np.uint16 if deep else np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    "40 images, and 7 files of a format that is not read."
    pictures(tmp_path / "pets", "cat", "dog", each=20)
    for i in range(7):
        (tmp_path / "pets" / "cat" / f"{i}.heic").write_bytes(b"x")
    return tmp_path / "pets"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A run on a folder with a test set."
    place = tmp_path_factory.mktemp("trained")
    pictures(place / "set" / "train", "a", "b"), pictures(place / "set" / "test", "a", "b")
    recipe = replace(TINY, data=f"folder:{place / 'set'}")
    images = load_sets(recipe.data, 8, root=place).train
    method = train(recipe, images, place / "run", device="cpu", show=False, threads=1).method
    save_encoders(place / "run" / "encoder.safetensors", method, recipe, images)
    return place / "run"


def test_test_images_of_one_class_are_an_answer_without_accuracy(run: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "set" / "train", "a", "b", each=5), pictures(tmp_path / "set" / "test", "a", each=9)
    asked = ("--protocol", "knn,linear", "--data", "folder:set", "--device", "cpu", "--root", tmp_path)
    for which, rows in (([run], ["teacher", "student"]), (["--encoder", run, "--size", "8"], [str(run)])):
        result = call(isd_eval, tmp_path, *which, *asked)
        assert result.returncode == 0, result.stderr
        assert "knn, linear on folder:set, 9 test images" in result.stdout
        lines = result.stdout.splitlines()
        assert [line.removesuffix("no accuracy").strip() for line in lines if line.endswith("no accuracy")] == rows
        assert "All images to test on are of one class, so no accuracy; nothing is saved" in result.stdout
        assert "1.000" not in result.stdout and "20-NN" not in result.stdout
    assert not list(run.glob("eval/*set*")) and not (tmp_path / "runs").exists()
    with pytest.raises(OneClass, match="all images to test on are of one class"):
        evaluate_run(run, data=f"folder:{tmp_path / 'set'}", device="cpu", root=tmp_path)


def test_every_command_says_what_it_found(
    pets: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isd_nb.explore.given.need_umap", lambda: None)  # both take long
    monkeypatch.setattr("isd_nb.explore.gallery.layout", lambda features, start=None: np.asarray(features)[:, :2])
    data, size = ["--data", "folder:pets"], ["--size", "8"]
    for command, *arguments in (
        (isd_embed, run, *data, "--out", "f.npy", "--device", "cpu"),
        (isd_pack, "folder:pets", "packed", *size),
        (isd_explore, "--encoder", run, *data, *size, "--html", "page.html"),
        (isd_explore, "--encoder", run, *data, *size, "--report", "tables"),
    ):
        result = call(command, tmp_path, *arguments, "--root", "cache")
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("7 .heic") == 1, result.stdout


def test_every_run_keeps_what_was_found(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isd_nb.engine.finish.score_features", lambda *given, **more: {})  # takes long
    monkeypatch.setattr("isd_nb.studies.compare.all_scores", lambda *given: {"student": {"knn20": 0.5}})
    monkeypatch.setattr("isd_nb.studies.compare.step_cost", lambda *given: {})
    recipe = replace(TINY, data=f"folder:{pets}")
    isd_nb.train(recipe, None, tmp_path / "python", device="cpu", root=tmp_path, threads=1)
    given = load_sets(f"folder:{pets}", 8, root=tmp_path).bank
    isd_nb.train(TINY, given, tmp_path / "given", device="cpu", threads=1)
    for name, trained in (("compared", True), ("baselines", False)):
        work(Task(recipe, str(tmp_path / name), {}, trained=trained, device="cpu", root=str(tmp_path)))
    names = ("python", "given", "compared", "baselines")
    found = {name: json.loads((tmp_path / name / "config.json").read_text())["found"] for name in names}
    assert found["given"]["train"]["images"] + found["given"]["test"]["images"] == len(given)
    assert all(".heic" in str(found[name]["left_out"]) for name in ("python", "compared", "baselines"))


def test_a_packed_set_keeps_what_was_left_out_and_no_place(pets: Path, tmp_path: Path) -> None:
    assert call(isd_pack, tmp_path, f"folder:{pets}", "packed", "--size", "8", "--root", "cache").returncode == 0
    about = json.loads((tmp_path / "packed" / "about.json").read_text())
    assert ".heic" in str(about["found"]["left_out"]) and str(tmp_path) not in json.dumps(about)
    assert ".heic" in str(load_sets(f"packed:{tmp_path / 'packed'}", 8).found)
    for damaged in (None, [], {"left_out": {"x": 3}}, {"left_out": 1}):  # of an earlier version, or edited by hand
        (tmp_path / "packed" / "about.json").write_text(json.dumps({**about, "found": damaged}))
        assert "left out" not in str(load_sets(f"packed:{tmp_path / 'packed'}", 8).found)


@pytest.mark.parametrize("broken", [0, 1, 3])
def test_a_broken_file_is_packed_under_no_name(broken: int, tmp_path: Path) -> None:
    "The same pack, whether the set fits into memory or not; 3 of 40 files are too many."
    generator = np.random.default_rng(0)
    for i in range(40):
        (place := tmp_path / "set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (12, 12, 3)).astype(np.uint8)).save(place / f"{i:02}.png")
    for path in sorted((tmp_path / "set").rglob("*.png"))[4:4 + broken]:
        path.write_bytes(b"no picture")
    spec, packs = f"folder:{tmp_path / 'set'}", []
    if broken == 3:
        said = refusal(pack_with, 0, spec, tmp_path / "none")
        assert said.startswith(f"3 of 40 files in {tmp_path / 'set'} cannot be read")
        assert not (tmp_path / "none").exists()
        return
    for memory in (4 << 30, 0):
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            done = pack_with(memory, spec, tmp_path / str(memory))
        said = [str(note.message) for note in noted if "cannot be read" in str(note.message)]
        packs.append((done, said, {path.name: path.read_bytes() for path in (tmp_path / str(memory)).iterdir()}))
    assert packs[0] == packs[1]
    assert sum(packs[1][0].values()) == 40 - broken and len(packs[1][1]) == min(broken, 1)
    found = str(load_sets(f"packed:{tmp_path / '0'}", 8).found)
    assert (f"left out: {broken} files that cannot be read" in found) == bool(broken)


def pack_with(memory: int, spec: str, out: Path) -> dict[str, int]:
    "Pack a set as one that fits into so much memory, or does not."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isd_nb.cli.pack.load_sets", partial(load_sets, memory=memory))
        return pack(spec, out, 8, None, out.parent / "cache")
