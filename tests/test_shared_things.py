"""What is shown or passed on has the levels of its run and no paths of this machine; nothing of a reader is lost."""
import csv
import json
import os
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import TINY, call
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

import isd_nb
from isd_nb.cli.explore import from_anywhere, isd_explore, write_notebook
from isd_nb.cli.export import isd_export
from isd_nb.cli.pack import pack
from isd_nb.cli.train import isd_train
from isd_nb.data import ImageSet
from isd_nb.encoders import load_encoder, save_encoder
from isd_nb.engine.evaluate_run import evaluate_run, images_for
from isd_nb.engine.evaluate_source import evaluate_source, white_of
from isd_nb.engine.export import export_encoder, to_share
from isd_nb.engine import runs, training
from isd_nb.engine.launch import Companion, Program, watch
from isd_nb.engine.model_card import model_card, write_model_card
from isd_nb.engine.report import write_report, write_table
from isd_nb.engine.state import prepare_training, save_encoders
from isd_nb.engine.training import saved_first, train
from isd_nb.errors import refusal
from isd_nb.explore import gallery, given
from isd_nb.explore.explorer import to_html
from isd_nb.explore.gallery import run_images
from isd_nb.explore.given import gallery_of_sources
from isd_nb.methods.building import build_method
from isd_nb.protocols.answers import EvalConfig
from isd_nb.protocols.storage import Stopped
from isd_nb.recipe import Recipe
from isd_nb.sources.door import load_images, load_sets

SHORT = Recipe("short", batch_size=8, queue_size=16, width=4, steps=4, evaluations=1)
SHORTER = Recipe("short", batch_size=8, queue_size=16, width=4, steps=2, evaluations=1, image_size=16)


@pytest.fixture
def deep_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Recipe, Path]:
    "A run on PNGs of 0 to 900 of which 4095 is white, named from where one stands."
    for i, values in enumerate(np.random.default_rng(0).integers(0, 900, (20, 16, 16)).astype(np.uint16)):
        path = tmp_path / "deep" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(**{**vars(SHORT), "data": "folder:deep", "white": 4095.0})
    train(recipe, load_images(recipe.data, 16, white=4095.0)[0], "run", device="cpu", show=False, threads=1)
    return recipe, tmp_path / "run"


def test_a_runs_white_is_kept_however_its_folder_is_named(deep_run: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, run = deep_run
    own = run_images(recipe, None, "data", 9)
    encoder = load_encoder(run / "checkpoints" / "encoder_00000004.safetensors")
    assert int(own.get([0]).max()) < 64
    for data in (from_anywhere(run, None, Path("data"))["data"], "folder:./deep"):
        assert torch.equal(run_images(recipe, data, "data", 9).get([0, 1]), own.get([0, 1]))
        assert int(images_for(EvalConfig(data=data), recipe, "data").bank.get([0]).max()) < 64
        assert white_of(encoder, data) == 4095.0
    (tmp_path / "other").symlink_to(tmp_path)
    assert white_of(encoder, "folder:gone") is None and white_of(encoder, "folder:other/deep") == 4095.0


def test_the_notebook_of_a_run_shows_its_images_with_its_white(deep_run: tuple[Recipe, Path],
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, run = deep_run
    want, places = run_images(recipe, None, "data", 9), from_anywhere(run, None, Path("data"))
    source = json.loads(write_notebook(run, limit=9, **places).read_text())["cells"][1]["source"]
    shown: list[torch.Tensor] = []

    def from_run(run: str, limit: int, data: str, root: str, white: float) -> None:
        shown.append(run_images(recipe, data, root, limit, white=white).get([0, 1]))
    monkeypatch.setattr("isd_nb.explore.explorer.Explorer.from_run", from_run)
    monkeypatch.chdir(run)  # where Jupyter starts the kernel
    exec(source, {})
    assert torch.equal(shown[0], want.get([0, 1]))


def test_answers_without_the_white_of_a_run_are_computed_again(deep_run: tuple[Recipe, Path], tmp_path: Path) -> None:
    run = deep_run[1]
    file = run / "checkpoints" / "encoder_00000004.safetensors"
    (run / "encoder.safetensors").write_bytes(file.read_bytes())
    for ask in (evaluate_run, evaluate_source):
        made = ask(str(run), data=f"folder:{tmp_path / 'deep'}", device="cpu")
        assert made["question"]["white"] == 4095.0
        assert "white" not in ask(str(run), data="folder:deep", device="cpu")["question"]


def test_the_cells_that_a_reader_added_to_a_runs_notebook_stay(deep_run: tuple[Recipe, Path]) -> None:
    run = deep_run[1]
    notebook = json.loads(write_notebook(run, limit=9).read_text())
    mine = dict(cell_type="code", id="mine", metadata={}, execution_count=1, outputs=[], source=["explorer.selection"])
    notebook["cells"] = [mine, *notebook["cells"]]
    notebook["cells"][2]["outputs"] = [dict(output_type="stream", name="stdout", text="seen")]
    (run / "explorer.ipynb").write_text(json.dumps(notebook))
    assert json.loads(write_notebook(run, limit=9).read_text()) == notebook
    again = json.loads(write_notebook(run, limit=8).read_text())["cells"]
    assert [cell["id"] for cell in again] == ["mine", "about", "explorer"] and again[0] == mine
    assert "limit=8" in again[2]["source"] and not again[2]["outputs"]
    (run / "explorer.ipynb").write_text('{"cells": [')
    assert "explorer.ipynb is damaged" in refusal(write_notebook, run)
    assert (run / "explorer.ipynb").read_text() == '{"cells": ['


def members(path: Path) -> dict[str, bytes]:
    "What lies in a zip."
    with ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("ending", [".pt", ".pt2"])
def test_an_exported_encoder_names_no_path_of_the_machine(ending: str, tmp_path: Path) -> None:
    out = tmp_path / f"encoder{ending}"
    assert export_encoder("shipped:digits", out) < 1e-5
    paths = [os.fsencode(Path(module.__file__ or "").parent) for module in (isd_nb, torch)]
    assert not [(name, path) for name, data in members(out).items() for path in paths if path in data]
    assert [*tmp_path.iterdir()] == [out]


def test_a_shared_run_names_no_path_of_a_packed_set_or_of_given_weights(deep_run: tuple[Recipe, Path],
                                                                       tmp_path: Path) -> None:
    pack("folder:deep", tmp_path / "pk", 16)
    given = tmp_path / "runs:old" / "enc.safetensors"
    given.parent.mkdir()
    given.write_bytes((deep_run[1] / "checkpoints" / "encoder_00000004.safetensors").read_bytes())
    recipe = replace(SHORT, data=f"packed:{tmp_path / 'pk'}", init=str(given))
    train(recipe, load_sets(recipe.data, 16).train, run := tmp_path / "packed_run", device="cpu", show=False, threads=1)
    (run / "encoder.safetensors").write_bytes((run / "checkpoints" / "encoder_00000004.safetensors").read_bytes())
    file, card = to_share(run, tmp_path / "shared", "some/one")
    assert not [path for path in (file, card) if os.fsencode(tmp_path) in path.read_bytes()]
    shared = load_encoder(file).metadata["recipe"]
    assert (shared["data"], shared["init"]) == ("packed:pk", "enc.safetensors")


def test_a_packed_set_names_its_folder_without_the_place(deep_run: tuple[Recipe, Path], tmp_path: Path) -> None:
    pack(f"folder:{tmp_path / 'deep'}", "pk", 16)
    assert json.loads(Path("pk/about.json").read_text())["data"] == "folder:deep"
    assert "packed from folder:deep" in str(load_sets("packed:pk", 16).found)


def ended(code: int) -> Companion:
    process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
    process.wait()
    return Companion(process, Program())


def test_a_companion_that_was_asked_to_stop_gives_the_first_process_time(monkeypatch: pytest.MonkeyPatch) -> None:
    exits, waits = list[int](), list[float]()
    monkeypatch.setattr(os, "_exit", exits.append)
    for others, seconds in (([ended(130)], 600.0), ([ended(130), ended(3)], 20.0)):
        for in_time in (True, False):
            rounds, done = iter([False, in_time, True]), threading.Event()
            monkeypatch.setattr(done, "wait", lambda wait, rounds=rounds: (waits.append(wait), next(rounds))[1])
            watch(others, done)
            assert waits[1] == seconds and len(exits) == (not in_time)
            exits.clear()
            waits.clear()


def test_a_stopped_training_waits_until_the_first_process_has_saved(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    images, events = load_images("digits", 16)[0].subset(range(16)), list[str]()
    save, wait = training.save_train_state, Accelerator.wait_for_everyone
    monkeypatch.setattr(training, "save_train_state", lambda *given: (events.append("saved"), save(*given)))
    monkeypatch.setattr(Accelerator, "wait_for_everyone", lambda self: (events.append("waited"), wait(self)))
    monkeypatch.setattr(training, "agreed", lambda *given: (True, False))
    with pytest.raises(Stopped):
        train(SHORT, images, tmp_path / "run", device="cpu", show=False, threads=1)
    assert events[-2:] == ["saved", "waited"]


def test_ruined_weights_are_not_saved_before_an_error_goes_on(tmp_path: Path) -> None:
    images = load_images("digits", 16)[0].subset(range(16))
    state = prepare_training(SHORT, images, "cpu")
    for ruined in (False, True):
        if ruined:
            next(state.method.parameters()).data.view(-1)[0] = float("nan")
        with pytest.raises(OSError, match="unreadable"), saved_first(state, tmp_path / f"{ruined}"):
            raise OSError("unreadable")
        assert len([*tmp_path.glob(f"{ruined}/checkpoints/state_*.pt")]) == (not ruined)


def test_a_page_of_given_encoders_names_their_files_and_no_folders(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def scatter(features: torch.Tensor, start: np.ndarray | None = None) -> np.ndarray:
        return np.zeros((len(features), 2), dtype=np.float32)
    monkeypatch.setattr(gallery, "layout", scatter)
    monkeypatch.setattr(given, "need_umap", bool)  # its import takes seconds
    first = load_encoder("shipped:digits")
    files = [tmp_path / place / "net.safetensors" for place in ("one", "two", "three/two")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_encoder(file, {"teacher": first}, first.config, first.image_size, {})
    made = gallery_of_sources([*map(str, files)], "digits", 16, limit=12, device="cpu", show=False)
    assert made.encoders == ["one/net.safetensors", "two/net.safetensors (2)", "two/net.safetensors (3)"]
    page = to_html(made)
    assert "one/net.safetensors" in page and str(tmp_path) not in page
    alone = gallery_of_sources([str(files[0])], "digits", 16, limit=12, device="cpu", show=False)
    assert alone.title == "net.safetensors"


def test_names_in_a_report_are_no_formulas_and_numbers_stay_numbers(tmp_path: Path) -> None:
    about = [(f"{'=+-@'[i % 4]}file{i}.png", "=1+1" if i % 2 else "-cat", "train") for i in range(12)]
    write_report(tmp_path, torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), about)
    for path in tmp_path.iterdir():
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        for name, cell in [(name, cell) for row in rows for name, cell in zip(header, row, strict=True)]:
            if "file" in name or "class" in name:
                assert cell.startswith("'")
            elif "split" not in name:
                float(cell)
    copies = write_table(tmp_path / "some.csv", ["number", "text"], [["-0.25", "\t=1"]]).read_text()
    assert copies.splitlines() == ["number,text", "-0.25,'\t=1"]


def test_a_run_that_another_process_begins_keeps_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, out, other = load_images("digits", 16)[0].subset(range(16)), tmp_path / "run", tmp_path / "photos"
    monkeypatch.setattr(runs, "locked", lambda folder, wait: nullcontext(False))
    assert "another process is training" in refusal(train, SHORT, images, out, device="cpu", show=False)
    assert not (out / "config.json").exists()
    monkeypatch.undo()
    other.mkdir()
    (other / "one.png").touch()
    for resume, why in ((False, "exists already; go on with it by resume=True"), (True, "is no run")):
        assert why in refusal(train, SHORT, images, other, device="cpu", show=False, resume=resume)
    assert [path.name for path in other.iterdir()] == ["one.png"]


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
    isd_nb.train(SHORTER, data, tmp_path / "run", device="cpu", threads=1, show=True)
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


def test_what_is_passed_on_takes_the_place_of_what_was_passed_on_alone(tmp_path: Path) -> None:
    one, other = (saved(tmp_path / name, replace(SHORTER, seed=i)) for i, name in enumerate(("one", "other")))
    mine = tmp_path / "mine" / "model.safetensors"
    mine.parent.mkdir()
    save_file({"weight": torch.ones(2)}, mine)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text('{"recipe": {}}')  # a run that has no weights yet
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for folder, file, words in ((other, "encoder.safetensors", "no mark"), (mine.parent, mine.name, "no mark"),
                                (tmp_path / "begun", "encoder.safetensors", "is a run"),
                                (tmp_path / "begun", "new.safetensors", "is a run")):
        assert words in refusal(to_share, one, folder, file=file)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "config.json").write_text("{}")  # of another program
    for run in (one, one, other):  # the same again, and another run in its place
        weights, _ = to_share(run, tmp_path / "shared")
        assert load_encoder(weights).metadata["recipe"]["seed"] == load_encoder(run).metadata["recipe"]["seed"]
    assert "shared" in load_encoder(weights).metadata and "shared" not in load_encoder(other).metadata


def test_a_guide_is_passed_on_by_its_name(run: Path, tmp_path: Path) -> None:
    small = saved(tmp_path / "small", replace(SHORTER, method="compress", options={"guide": str(run)}))
    assert not [path for path in to_share(small, tmp_path / "shared") if names(path, run.parent)]
    assert '"guide": "run"' in model_card(small)


def test_a_folder_whose_name_is_not_utf8_has_a_card(tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/v\xf6gel")
    card = write_model_card(place := saved(tmp_path / "run", replace(SHORTER, data=f"folder:{folder}")))
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
    lab = ["--port", "8889", "--ServerApp.base_url=/a//b/"]  # without a run, the first of them comes in its place
    monkeypatch.setattr("isd_nb.cli.explore.open_lab", lambda notebook, more: opened.append(more))
    for before in (wanted, [run, "--limit", "8"]):
        done = call(isd_explore, tmp_path, *before, "--", *lab)
        assert done.returncode == 0 and opened.pop() == lab, done.stderr
    opened[0].write_text("mine")
    assert "is not overwritten" in call(isd_explore, tmp_path, *wanted).stderr and opened[0].read_text() == "mine"


def stopped(*_: object, found: object, **__: object) -> None:
    "Where training would begin."
    raise KeyError("nothing" if found else "found")


@pytest.mark.parametrize("given", [False, True])
def test_images_of_python_are_described_before_training(given: bool, capsys: pytest.CaptureFixture[str],
                                                        tmp_path: Path) -> None:
    images = ImageSet(torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8), torch.arange(20) % 2)
    for show in (True, False):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyError, match="nothing"):  # is trained here
            patch.setattr("isd_nb.engine.whole.train_method", stopped)
            isd_nb.train(SHORTER, images, tmp_path, images.subset(range(4)) if given else None, show=show)
        said = capsys.readouterr().out
        assert ("16 images of 2 classes" in said) is (show and not given)
        assert ("20 images of 2 classes" in said and "given in Python" in said) is (show and given)


def test_the_module_for_lightning_trains() -> None:
    pytest.importorskip("lightning", reason="its example needs: pip install 'isd_nb[lightning]'")
    example = Path(__file__).parent.parent / "examples" / "with_lightning.py"
    done = subprocess.run([sys.executable, example, "2"], capture_output=True, text=True, check=True, timeout=300)
    assert "step 2: loss" in done.stdout
