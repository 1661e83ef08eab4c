"""A run and its images: which images are a run's, which are not, and what states so."""
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import call
from isd_nb.cli.evaluate import isd_eval
from isd_nb.cli.explore import from_anywhere, isd_explore
from isd_nb.cli.pack import pack
from isd_nb.cli.train import isd_train
from isd_nb.data import ImageSet
from isd_nb.encoders import load_encoder
from isd_nb.engine.evaluate_run import check_own, evaluate_run
from isd_nb.engine.finish import score_table, what_was_run
from isd_nb.engine.state import save_encoders
from isd_nb.engine.training import Trained, train
from isd_nb.engine.whole import check_test, sets_of
from isd_nb.engine.whole import train as train_whole
from isd_nb.errors import refusal
from isd_nb.explore.figures import train_or_go_on
from isd_nb.explore.gallery import gallery_of_run
from isd_nb.isd import ISD
from isd_nb.methods.building import build_method, read_sets
from isd_nb.protocols.storage import write_json
from isd_nb.recipe import Recipe, recipe_to_json
from isd_nb.sources.datasets import from_dataset
from isd_nb.sources.door import Sets, load_sets
from isd_nb.sources.given import FolderSpec, absolute, parse_folder, with_given

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


def test_a_notebook_for_gpus_notes_what_it_read_and_goes_on_with_it_only(small: Path, tmp_path: Path) -> None:
    recipe = replace(QUICK, data=f"folder:{small}")
    sets = read_sets(recipe, tmp_path)
    train_or_go_on(recipe, sets, tmp_path / "run", show=False)
    train_or_go_on(recipe, sets, tmp_path / "run", show=False)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["found"] == sets.found.to_json() and config["tested"]["images"] == 20
    overwrite(small / "test")
    said = refusal(train_or_go_on, recipe, read_sets(recipe, tmp_path), tmp_path / "run", show=False)
    assert "other images to test on" in said


@pytest.fixture(scope="module")
def given_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A run on images that are given in Python, without labels: nothing is measured at its end."
    out = tmp_path_factory.mktemp("given") / "run"
    train_whole(QUICK, ImageSet(pictures().images), out, pictures(8, 1), device="cpu")
    return out


def test_test_images_given_in_python_are_those_of_the_run(given_run: Path) -> None:
    kept = (given_run / "summary.json").read_bytes()
    said = refusal(train_whole, QUICK, ImageSet(pictures().images), given_run, pictures(8, 2), True, "cpu")
    assert "other images to test on: 8 images of 2 classes then, as many but others now" in said
    assert (given_run / "summary.json").read_bytes() == kept


def test_a_run_in_python_states_what_a_command_states(given_run: Path, tmp_path: Path) -> None:
    summary = json.loads((given_run / "summary.json").read_text())
    wanted = dict(has_teacher=True, command="", test_images=8, images_seen=32, images_seen_supervised=0)
    assert summary | wanted == summary
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(pictures().images.numpy()):
        Image.fromarray(image[0]).save(folder / f"{i:02}.png")
    trained(tmp_path, "--data", f"folder:{folder}", "--out", "run")
    assert json.loads((tmp_path / "run/summary.json").read_text()).keys() == summary.keys()


@pytest.mark.parametrize(("program", "command"), [
    ("/bin/isd_train", "isd_train --seed 3"), ("/lib/isd_nb/cli/__main__.py", "isd_train --seed 3"),
    ("/lib/pytest/__main__.py", ""), ("/lib/own/cli.py", ""), ("", "")])
def test_a_summary_keeps_its_command_however_it_was_started(program: str, command: str,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures()
    done = Trained(build_method(QUICK, images), 32, 1.0, 32.0)
    monkeypatch.setattr("sys.argv", [program, "--seed", "3"])
    assert what_was_run(QUICK, done, None, Sets(images, images, None))["command"] == command


def test_a_run_without_a_note_of_its_test_images_goes_on_and_states_it(small: Path, tmp_path: Path) -> None:
    go(str(small), tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    del config["tested"]
    write_json(tmp_path / "run/config.json", config)
    with pytest.warns(UserWarning, match="without a note of its images to test on"):
        go(str(small), tmp_path / "run", resume=True)


@pytest.fixture
def lone(make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "A run with encoders on the images of `here/set`, and other images in `there/set`."
    make_folder("here/set", {"a": 12, "b": 12})
    make_folder("there/set", {"a": 9, "b": 9, "c": 9})
    monkeypatch.chdir(tmp_path / "here")
    with_encoders(replace(QUICK, data="folder:set"), tmp_path / "here/run")
    return tmp_path / "here/run"


def with_encoders(recipe: Recipe, out: Path) -> Sets:
    "A run as isd_eval takes it."
    sets = read_sets(recipe, out.parent / "cache")
    done = train(recipe, sets.train, out, device="cpu", show=False)
    save_encoders(out / "encoder.safetensors", done.method, recipe, sets.train)
    return sets


def test_a_run_is_evaluated_on_its_own_images_unless_others_are_named(lone: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    own = call(isd_eval, lone.parent, "run", "--device", "cpu")
    assert own.returncode == 0, own.stderr
    kept = (lone / "eval/knn.json").read_bytes()
    other = call(isd_eval, there, "../here/run", "--device", "cpu")
    assert other.returncode == 2 and "20 images of 2 classes then, 21 images of 3 classes now" in other.stderr
    assert "--data" in other.stderr and (lone / "eval/knn.json").read_bytes() == kept
    named = call(isd_eval, there, "../here/run", "--device", "cpu", "--data", "folder:set")
    assert named.returncode == 0, named.stderr


def test_a_run_whose_files_were_left_out_as_unreadable_is_evaluated(make_folder: Callable[..., Path],
                                                                    tmp_path: Path) -> None:
    place = make_folder("set", {"a": 30, "b": 30})
    (place / "a/005.png").write_bytes(b"no picture")
    recipe, out = replace(QUICK, data=f"folder:{place}", stored_size=20), tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file cannot be read
        sets = with_encoders(recipe, out)
        lazy = replace(sets, bank=load_sets(recipe.data, 16, root=tmp_path, memory=0).bank)
        assert len(lazy.bank) == len(sets.train) + 1
        check_own(out, recipe, lazy, tmp_path)
        assert len(evaluate_run(out, device="cpu", root=tmp_path)["rows"]) == 2


def test_images_to_test_on_are_used_beside_a_named_folder(small: Path, tmp_path: Path) -> None:
    test, recipe = pictures(8, classes=("b", "a"), channels=3), replace(QUICK, data="")
    _, sets = sets_of(f"folder:{small}", test, recipe, tmp_path)
    assert sets.test is test and len(sets.bank) == 80 and sets.train.classes == ("a", "b")
    said = refusal(train_whole, QUICK, f"folder:{small}", tmp_path / "run", test, device="cpu", root=tmp_path)
    assert "the label 0 is 'a' among the training images and 'b' among those to test on" in said


@pytest.mark.parametrize("test, words", [
    (pictures(9, classes=("c", "b", "a")), "the label 0 is 'a' among the training images and 'c' among those"),
    (pictures(10, classes=tuple("abcde")), "classes that the training images lack: d, e"),
    (ImageSet(pictures(10).images, torch.arange(10) % 5), "classes that the training images lack: 3, 4"),
    (pictures(9, classes=("a", "b", "x")), "classes that the training images lack: x"),
    (pictures(9, classes=("a", "b", "c"), channels=3), "have 3 channels, and the training images 1"),
    ("folder:test", "test must be an ImageSet, not str"),
])
def test_images_to_test_on_that_do_not_fit_are_refused_before_a_run_is_begun(test: ImageSet, words: str,
                                                                             tmp_path: Path) -> None:
    images = pictures(24, classes=("a", "b", "c"))
    assert words in refusal(train_whole, QUICK, images, tmp_path / "run", test, device="cpu")
    assert not (tmp_path / "run").exists()


def test_images_to_test_on_without_names_or_of_fewer_classes_fit() -> None:
    images = pictures(24, classes=("a", "b", "c"))
    for test in (ImageSet(pictures(9).images, torch.arange(9) % 3), pictures(8, classes=("a", "b")),
                 ImageSet(pictures(9).images)):
        check_test(images, test)
    check_test(ImageSet(pictures(9).images, torch.arange(9) % 3), images)


def test_a_run_on_images_given_in_python_names_data(given_run: Path, small: Path, tmp_path: Path) -> None:
    for command, extra in ((isd_eval, ["--device", "cpu"]), (isd_explore, ["--html", "page.html"])):
        said = call(command, tmp_path, given_run, *extra)
        assert said.returncode == 2 and "trained on images given in Python" in said.stderr and "--data" in said.stderr
    assert evaluate_run(given_run, data=f"folder:{small}", device="cpu", root=tmp_path)["test_images"] == 20


def test_a_folder_with_a_question_mark_takes_options(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    make_folder("wh?t/a", {"dog": 6, "cat": 6}), make_folder("wh?t/b?", {"dog": 3, "cat": 3})
    spec = with_given(f"folder:{tmp_path}/wh?t", test="b?")
    sets = load_sets(spec, 8, root=tmp_path)
    assert (len(sets.train), len(sets.test)) == (12, 6)
    assert absolute(spec) == spec and parse_folder("gone/wh?t?test=dog") == FolderSpec("gone/wh?t", test="dog")
    (tmp_path / "wh?t").rename(tmp_path / "why?")
    assert "wh?t is not a folder" in refusal(load_sets, f"folder:{tmp_path}/wh?t", 8, root=tmp_path)
    assert "not 'lables=x'" in refusal(parse_folder, f"{tmp_path}/why?" + "?lables=x")


def test_the_notebook_of_a_packed_run_names_its_images(small: Path, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pack("folder:small", "packed8", size=8)
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run/config.json", dict(recipe=recipe_to_json(replace(QUICK, data="packed:packed8"))))
    places = from_anywhere(Path("run"), None, Path("data"))
    assert places["data"] == f"packed:{tmp_path / 'packed8'}"
    monkeypatch.chdir(tmp_path / "run")
    assert load_sets(places["data"], 8).train.images.shape == (80, 3, 8, 8)


def test_a_test_folder_may_be_named_with_the_folder_around_the_set(small: Path, tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    small.rename(tmp_path / "outer/my set")
    with ZipFile(tmp_path / "packed.zip", "w") as packed:
        for path in sorted((tmp_path / "outer").rglob("*.png")):
            packed.write(path, path.relative_to(tmp_path / "outer"))
    for place in (tmp_path / "outer", tmp_path / "packed.zip"):
        for test in ("my set/test", "test", str(place / "my set/test")):
            sets = load_sets(f"folder:{place}?test={test}", 8, root=tmp_path)
            assert (len(sets.train), len(sets.test), sets.train.classes) == (80, 20, ("a", "b")), (place, test)


def test_a_data_set_keeps_its_shape_and_is_grey_or_in_colour() -> None:
    grey, colour = Image.new("L", (8, 4), 7), Image.new("RGB", (8, 4))
    assert from_dataset([grey] * 2).images.shape == (2, 1, 4, 8) and from_dataset([colour]).images.shape == (1, 3, 4, 8)
    assert from_dataset([grey, Image.new("L", (9, 9))], size=4).images.shape == (2, 1, 4, 4)
    for size in (None, 8):
        said = refusal(from_dataset, [grey, colour], size)
        assert "image 1 of the data set has 3 channels, but the first has 1: convert all of them to RGB" in said
    assert "give a size" in refusal(from_dataset, [grey, Image.new("L", (4, 8))])


class Named(ISD):
    "A method whose encoders have names of its own."

    def encoders(self) -> dict:
        return {"mine": self.student, "its": self.teacher.module}


def test_encoders_of_other_names_have_scores_and_a_gallery(make_module: Callable, small: Path, tmp_path: Path) -> None:
    make_module("own_names", Named=Named)
    said = trained(tmp_path, "--data", f"folder:{small}", "--method", "own_names:Named", "--out", "run")
    rows = [line.split()[0] for line in said.partition("encoder   ")[2].splitlines()[1:5]]
    assert rows == ["raw", "untrained", "mine", "its"] and "no accuracy" not in said
    assert 'load_encoder("run", which="mine")' in said and load_encoder(tmp_path / "run", "mine")
    assert score_table(json.loads((tmp_path / "run/summary.json").read_text())).split()[:2] == ["mine", "its"]
    gallery = gallery_of_run(tmp_path / "run", limit=20, moments=1, show=False)
    assert gallery.encoders == ["its", "mine"] and len(gallery.images) == 20
