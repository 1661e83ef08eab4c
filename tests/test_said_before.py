"""What was found is said before anything starts, and what ends a command is said when it ends."""
import json
import os
import signal
from collections.abc import Callable
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from conftest import call
from PIL import Image

import isd_nb
from isd_nb.cli.embed import isd_embed
from isd_nb.cli.evaluate import isd_eval
from isd_nb.cli.explore import isd_explore
from isd_nb.cli.export import isd_export
from isd_nb.cli.pack import isd_pack
from isd_nb.cli.train import isd_train
from isd_nb.data import held_out
from isd_nb.engine.evaluate_run import OneClass, evaluate_run
from isd_nb.engine.state import save_encoders
from isd_nb.engine.training import train
from isd_nb.recipe import find_recipe, replace
from isd_nb.sources.door import load_sets
from isd_nb.studies.compare import Task, work
from isd_nb.studies.evidence import Study, ledger_of, read_result

ROOT = Path(__file__).parents[1]
TINY = replace(find_recipe("digits"), steps=4, batch_size=8, queue_size=16, width=4, projector=(8,), predictor=(8,),
               evaluations=1, image_size=8)
OPTIONS = ["--recipe", "digits", "--steps", "4", "--batch-size", "8", "--set", "queue_size=16", "--set", "width=4",
           "--set", "evaluations=1", "--set", "image_size=8", "--threads", "1", "--processes", "1", "--no-supervised",
           "--no-figures", "--device", "cpu"]


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
    for which in ([run], ["--encoder", run, "--size", "8"]):
        result = call(isd_eval, tmp_path, *which, "--data", "folder:set", "--device", "cpu", "--root", tmp_path)
        assert result.returncode == 0, result.stderr
        assert "knn on folder:set, 9 test images" in result.stdout
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
    monkeypatch.setattr("isd_nb.studies.compare.all_scores", lambda *given: {})
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


def commands() -> dict[str, str]:
    "The commands of the package, and where they are."
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    return dict(entry.split("=") for entry in settings["DEFAULT"]["console_scripts"].split())


@pytest.mark.parametrize("name", commands())
def test_every_command_starts_as_the_others_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, _, function = commands()[name].partition(":")
    module, started = import_module(place), []
    monkeypatch.setattr(module, "console", started.append)
    getattr(module, function)()
    assert started == [module.command]


def ended(place: Path, command: Callable[[], None], *arguments: str | Path) -> tuple[int, str]:
    "Exit code and last line."
    result = call(command, place, *arguments)
    return result.returncode, result.stderr.strip().splitlines()[-1]


def test_sigterm_outside_of_the_steps_is_said(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def comes(*given: object, **more: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
    safety = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the signal ended the process"))
    try:
        for place in ("isd_nb.cli.train.read_sets", "isd_nb.cli.train.final_scores"):
            with monkeypatch.context() as patch:
                patch.setattr(place, comes)
                said = ended(tmp_path, isd_train, "--data", "digits", "--out", place, *OPTIONS)
            assert said == (143, "isd_train: stopped by SIGTERM; go on with --resume")
        monkeypatch.setattr("isd_nb.cli.evaluate.evaluate_run", comes)
        again = "finished rows are saved, and the same command goes on from there"
        assert ended(tmp_path, isd_eval, run) == (143, f"isd_eval: stopped by SIGTERM; {again}")
    finally:
        signal.signal(signal.SIGTERM, safety)


def test_what_cannot_be_resumed_does_not_advise_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: object, **more: object) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr("isd_nb.cli.explore.produce", interrupted)
    monkeypatch.setattr("isd_nb.cli.export.export_encoder", interrupted)
    again = "stopped; the same command begins again"
    assert ended(tmp_path, isd_explore, run, "--html", "page.html") == (130, f"isd_explore: {again}")
    assert ended(tmp_path, isd_export, run, "--out", "net.pt") == (130, f"isd_export: {again}")


def test_rows_of_a_claim_belong_to_their_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study("toy", TINY, 32, (0,), tmp_path, tmp_path / "runs", "cpu")
    images, test = held_out(load_sets("digits", 8).bank.subset(range(80)))
    others = images.subset(range(40))
    assert ledger_of(study, images, test, tail=1).row({"seed": 0}, lambda: {"value": 1})["value"] == 1
    assert ledger_of(study, images, test, tail=1).row({"seed": 0}, lambda: {"value": 2})["value"] == 1
    with pytest.warns(UserWarning, match=r"toy.json holds rows of other images .*: computed again"):
        assert ledger_of(study, others, test, tail=1).row({"seed": 0}, lambda: {"value": 3})["value"] == 3
    saved = json.loads((tmp_path / "toy.json").read_text())
    del saved["question"]["images"], saved["question"]["protocol_version"]  # as an earlier version saved it
    (tmp_path / "toy.json").write_text(json.dumps(saved))
    read_result("toy", folder=tmp_path)
    assert "by protocol 1 (today 2), which did not note the images" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="rows of an earlier version, which did not note their images"):
        assert ledger_of(study, others, test, tail=1).row({"seed": 0}, lambda: {"value": 4})["value"] == 4
    again = json.loads((tmp_path / "toy.json").read_text())
    assert (again["before"]["protocol_version"], again["before"]["rows"]) == (1, saved["rows"])
    read_result("toy", folder=tmp_path)
    assert "by protocol" not in capsys.readouterr().out
