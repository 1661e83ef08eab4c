"""A run, a saved answer and a comparison know which images they were made from."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image

import isd_nb
from isd_nb.cli.evaluate import isd_eval
from isd_nb.data import FileList, ImageSet
from isd_nb.engine.runs import open_run, read_recipe
from isd_nb.engine.training import train
from isd_nb.errors import InputError
from isd_nb.protocols.storage import write_json
from isd_nb.recipe import Recipe, find_recipe, recipe_from_json, recipe_to_json
from isd_nb.sources.door import load_sets
from isd_nb.sources.identity import fingerprint, identity, other_images
from isd_nb.studies.compare import comparable_sets, identities
from isd_nb.studies.tables import notes

QUICK = Recipe(
    "quick",
    steps=4,
    evaluations=1,
    batch_size=8,
    queue_size=16,
    width=4,
    projector=(6,),
    predictor=(),
    precision="float32",
)


def folder_of(place: Path, size: int = 16) -> ImageSet:
    return load_sets(f"folder:{place}", size, root=place.parent).train


def test_a_fingerprint_is_of_contents_and_not_of_places(small: Path) -> None:
    first = identity(folder_of(small))
    assert identity(folder_of(small, size=8)) == first, "the size in which they are read does not matter"
    copy = shutil.copytree(small, small.parent / "copy")  # with other times
    assert identity(folder_of(copy)) == first
    assert identity(folder_of(small.rename(small.parent / "moved"))) == first
    as_paths = ImageSet(None, folder_of(copy).labels, ("a", "b"), tuple(folder_of(copy).paths), (3, 8, 8))
    assert identity(as_paths) == first


def test_other_contents_have_another_fingerprint(small: Path) -> None:
    seen, first = {fingerprint(folder_of(small))}, identity(folder_of(small))
    place = small / "train" / "a" / "007.png"
    whole = place.read_bytes()

    def changed() -> bool:  # whether nothing so far had this fingerprint
        seen.add(now := fingerprint(folder_of(small)))
        return now != first["fingerprint"]

    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(place)
    assert changed()
    place.write_bytes(whole)
    assert not changed()
    place.rename(place.with_name("other.png"))
    assert changed()
    place.with_name("other.png").rename(small / "train" / "b" / "007.png.png")
    assert changed() and len(seen) == 4
    assert other_images(first, identity(folder_of(small))) == "80 images of 2 classes then, as many but others now"


def test_a_large_file_is_known_by_its_ends_and_its_middle(tmp_path: Path) -> None:
    def of(contents: bytes) -> str:
        (tmp_path / "0.png").write_bytes(contents)
        return fingerprint(ImageSet(None, None, (), FileList.of(tmp_path, ["0.png"]), (3, 4, 4)))

    large = bytearray(1 << 20)
    found = {of(large)}
    for place in (0, 1 << 19, (1 << 20) - 1):
        large[place] = 1
        found.add(of(large))
    (tmp_path / "0.png").unlink()
    gone = fingerprint(ImageSet(None, None, (), FileList.of(tmp_path, ["0.png"]), (3, 4, 4)))
    assert len(found | {gone}) == 5


def images(count: int = 24, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    return ImageSet(
        torch.randint(256, (count, 1, 16, 16), generator=generator).to(torch.uint8), torch.arange(count) % 3
    )


@pytest.mark.parametrize("method", ["isd", "pirl", "supervised"])
def test_a_run_goes_on_with_its_own_images_only(tmp_path: Path, method: str) -> None:
    recipe, out = replace(QUICK, method=method), tmp_path / "run"
    train(recipe, images(), out, device="cpu", show=False)
    for others, words in (
        (images(30), "24 images of 3 classes then, 30 images of 3 classes now"),
        (images(seed=1), "24 images of 3 classes then, as many but others now"),
    ):
        with pytest.raises(InputError, match=f"run was begun with other images: {words}"):
            train(recipe, others, out, resume=True, device="cpu", show=False)
    assert train(recipe, images(), out, resume=True, device="cpu", show=False).images_seen == 32


def test_moved_images_go_on(isd_train: Callable, small: Path, tmp_path: Path) -> None:
    quick = ("--recipe", "digits", "--no-figures", "--no-supervised")
    assert isd_train(*quick, "--data", "folder:small", "--out", "run").returncode == 0
    small.rename(tmp_path / "elsewhere")
    result = isd_train("--no-figures", "--no-supervised", "--out", "run", "--resume")
    assert result.returncode == 2 and "small is not a folder" in result.stderr
    result = isd_train("--no-figures", "--no-supervised", "--out", "run", "--resume", "--data", "folder:elsewhere")
    assert result.returncode == 0, result.stderr
    assert read_recipe(tmp_path / "run").data == "folder:elsewhere", "later commands find them"
    (tmp_path / "elsewhere" / "train" / "a" / "000.png").unlink()
    result = isd_train("--no-figures", "--no-supervised", "--out", "run", "--resume")
    assert result.returncode == 2 and "80 images of 2 classes then, 79 images of 2 classes now" in result.stderr
    assert (
        len([line for line in result.stderr.splitlines() if line.startswith("isd_train:")]) == 1
        and "Traceback" not in result.stderr
    )


def test_a_run_goes_on_with_its_own_white_only(isd_train: Callable, tmp_path: Path) -> None:
    for i, values in enumerate(np.random.default_rng(0).integers(0, 900, (20, 16, 16)).astype(np.uint16)):
        path = tmp_path / "deep" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    for run, white in (("plain", ()), ("stated", ("--white", "4095")), ("set", ("--set", "white=4095"))):
        quick = ("--recipe", "digits", "--no-figures", "--no-supervised", "--out", run)
        assert isd_train(*quick, "--data", "folder:deep", *white).returncode == 0
    shutil.copytree(tmp_path / "deep", tmp_path / "copy")
    again = ("--no-figures", "--no-supervised", "--resume", "--out")
    fits = [("plain", "deep"), ("stated", "copy"), ("stated", "deep", "--white", "4095.0"),
            ("stated", "copy", "--set", "white=4095"), ("set", "copy", "--white", "4095"), ("set", "deep")]
    for run, place, *more in fits:
        result = isd_train(*again, run, "--data", f"folder:{place}", *more)
        assert result.returncode == 0, (run, place, more, result.stderr)
        assert run == "plain" or "to 4095 (white), as given by white=" in result.stdout
        assert Path(read_recipe(tmp_path / run).data.partition("?")[0].removeprefix("folder:")).name == place
    for run, was, *more in (("plain", "None", "--white", "400"), ("stated", "4095", "--white", "400"),
                            ("set", "4095", "--white", "400"), ("plain", "None", "--set", "white=400")):
        result = isd_train(*again, run, "--data", "folder:deep", *more)
        words, said = f"begun with another recipe, changed from white {was} to 400;", result.stderr.replace(".0", "")
        assert result.returncode == 2 and words in said, said


def test_a_moved_folder_keeps_the_white_of_its_run_in_python(tmp_path: Path) -> None:
    for i, values in enumerate(np.random.default_rng(0).integers(0, 900, (20, 16, 16)).astype(np.uint16)):
        path = tmp_path / "deep" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    how, run = dict(device="cpu", root=tmp_path, threads=1), tmp_path / "run"
    recipe, place = replace(QUICK, image_size=16), f"folder:{tmp_path / 'copy'}"
    isd_nb.train(recipe, f"folder:{tmp_path / 'deep'}?white=4095", run, **how)
    shutil.copytree(tmp_path / "deep", tmp_path / "copy")
    assert isd_nb.train(recipe, place, run, resume=True, **how).summary["data"] == f"{place}?white=4095"
    assert read_recipe(run).data == f"{place}?white=4095", "later commands find them"
    isd_nb.train(replace(recipe, data=place), None, run, resume=True, **how)
    for changed, stated in ((recipe, f"{place}?white=400"), (replace(recipe, white=400.0), place)):
        with pytest.raises(InputError, match=r"another recipe, changed from white 4095\.0 to 400\.0"):
            isd_nb.train(changed, stated, run, resume=True, **how)


def test_another_test_folder_is_no_move(isd_train: Callable, small: Path, tmp_path: Path) -> None:
    (small / "test").rename(tmp_path / "A")
    shutil.copytree(tmp_path / "A", tmp_path / "B")
    quick = ("--recipe", "digits", "--no-figures", "--no-supervised", "--data", "folder:small", "--out", "run")
    assert isd_train(*quick, "--test", "A").returncode == 0
    result = isd_train(*quick, "--test", "B", "--resume")
    assert result.returncode == 2 and "was begun with --test A, and now it is B" in result.stderr
    (tmp_path / "held").mkdir()
    (tmp_path / "A").rename(tmp_path / "held" / "A")
    result = isd_train(*quick, "--test", "held/A", "--resume")
    assert result.returncode == 0, result.stderr


def test_runs_of_before_go_on_and_say_so(tmp_path: Path) -> None:
    out, config = tmp_path / "run", tmp_path / "run" / "config.json"
    train(QUICK, images(), out, device="cpu", show=False)
    old = json.loads(config.read_text())
    del old["images"], old["recipe"]["white"]  # as an earlier version wrote it
    write_json(config, old)
    assert recipe_from_json(old["recipe"]) == QUICK
    with pytest.warns(UserWarning, match="did not note its images: whether they are the same is not known"):
        train(QUICK, images(), out, resume=True, device="cpu", show=False)
    with pytest.raises(InputError, match="changed from data"):  # moved, or others? nobody knows
        open_run(out, replace(QUICK, data="folder:elsewhere"), True, identity(images()))


@pytest.fixture
def finished(isd_train: Callable, small: Path, tmp_path: Path) -> Path:
    "A run on the images of `small`."
    result = isd_train(
        "--recipe", "digits", "--no-figures", "--no-supervised", "--data", "folder:small", "--out", "run"
    )
    assert result.returncode == 0, result.stderr
    return tmp_path / "run"


def test_saved_answers_are_of_the_images_that_are_there(finished: Path, small: Path, tmp_path: Path) -> None:
    def ask() -> tuple[str, dict]:
        result = call(isd_eval, tmp_path, "run", "--device", "cpu")
        assert result.returncode == 0, result.stderr
        return result.stdout, json.loads((finished / "eval/knn.json").read_text())

    said, first = ask()
    assert "80 images of 2 classes" in said and "computed again" not in said
    marked = first | {"rows": [row | {"nn": -1.0} for row in first["rows"]]}
    write_json(finished / "eval/knn.json", marked)
    assert ask()[1]["rows"] == marked["rows"], "the same images: nothing is computed"
    for i in range(10):  # other images under the same names
        Image.fromarray(np.full((20, 20, 3), 9 * i, np.uint8)).save(small / "test" / "a" / f"{i:03}.png")
    said, again = ask()
    why = "to test on: 20 images of 2 classes then, as many but others now"
    assert f"the saved rows are of other images ({why}): computed again" in said
    assert all(row["nn"] >= 0 for row in again["rows"]) and again["test_images"] == 20
    small.rename(tmp_path / "moved")
    write_json(
        finished / "config.json",
        json.loads((finished / "config.json").read_text().replace("folder:small", "folder:moved")),
    )
    assert ask()[1]["rows"][0]["nn"] == again["rows"][0]["nn"]
    del again["question"]["images"], again["question"]["protocol_version"]  # as an earlier version saved it
    write_json(finished / "eval/knn.json", again)
    said, new = ask()
    assert "saved by an earlier version do not say which images they are of: computed again" in said
    assert (new["before"]["protocol_version"], new["before"]["rows"]) == (1, again["rows"])


def test_a_comparison_is_of_one_set_of_images(small: Path, tmp_path: Path) -> None:
    base, out = replace(find_recipe("digits"), data=f"folder:{small}"), tmp_path / "out"
    sets = comparable_sets(base, tmp_path, out)
    out.mkdir()
    write_json(out / "comparison.json", dict(images=identities(sets), recipe=recipe_to_json(base)))
    comparable_sets(base, tmp_path, out)
    (small / "train" / "b" / "003.png").unlink()
    with pytest.raises(InputError, match="80 images of 2 classes then, 79 images of 2 classes now"):
        comparable_sets(base, tmp_path, out)
    shutil.rmtree(small / "train" / "b")
    shutil.rmtree(small / "test" / "b")
    with pytest.raises(InputError, match="all images are of one class, so no accuracy, and methods cannot be compared"):
        comparable_sets(base, tmp_path, out)


def test_old_scores_in_a_table_are_marked() -> None:
    scores = {"student": {"knn20": 0.5}}
    row = dict(method="isd", images_seen=9, guide=None, scores=scores, curve=[{}])
    rows = [row, row | dict(protocol_version=2)]
    comparison = dict(runs=rows, baselines=[dict(protocol_version=2)], seeds=[0], failures={})
    assert "1 of 3 rows were scored by the protocols of an earlier version" in "\n".join(notes(comparison))
    assert "earlier" not in "\n".join(notes(comparison | dict(runs=rows[1:])))


def test_white_is_a_setting_of_the_recipe(isd_train: Callable, small: Path, tmp_path: Path) -> None:
    result = isd_train("--recipe", "digits", "--data", "folder:small", "--set", "white=0", "--out", "run")
    assert result.returncode == 2 and "white must be positive" in result.stderr and not (tmp_path / "run").exists()
    assert recipe_from_json(recipe_to_json(replace(QUICK, white=4095))).white == 4095
