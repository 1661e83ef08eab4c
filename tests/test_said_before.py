"""What was found is said before anything starts, and what ends a command is said when it ends."""
import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser, SectionProxy
from importlib import import_module
from pathlib import Path

import fuzz
import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image

import isd_nb
from isd_nb import ISD, AnchorQueue, EMATeacher, evaluation
from isd_nb.cli.embed import isd_embed
from isd_nb.cli.evaluate import isd_eval
from isd_nb.cli.explore import isd_explore
from isd_nb.cli.export import isd_export
from isd_nb.cli.pack import isd_pack
from isd_nb.cli.train import isd_train
from isd_nb.data import ImageSet, held_out
from isd_nb.encoders import BackboneConfig, Encoder, build_backbone, channel_statistics
from isd_nb.engine.evaluate_run import OneClass, evaluate_run
from isd_nb.engine.state import save_encoders
from isd_nb.engine.training import train
from isd_nb.errors import InputError
from isd_nb.kernels.devices import machine
from isd_nb.kernels.linear_classifier import fit_linear
from isd_nb.loss import soft_label_loss, soft_labels, streaming_soft_label_loss
from isd_nb.protocols import collapse
from isd_nb.recipe import find_recipe, replace
from isd_nb.sources.door import load_sets
from isd_nb.studies.compare import Task, work
from isd_nb.studies.evidence import Study, ledger_of, read_result
from isd_nb.views import STRONG, Views, augment, random_draw

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


def settings() -> SectionProxy:
    "What the package states about itself."
    read = ConfigParser(delimiters=["="])
    read.read(ROOT / "settings.ini")
    return read["DEFAULT"]


def commands() -> dict[str, str]:
    "The commands of the package, and where they are."
    return dict(entry.split("=") for entry in settings()["console_scripts"].split())


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
        monkeypatch.setattr("isd_nb.cli.evaluate.evaluate_run_by", comes)
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
    with pytest.MonkeyPatch.context() as later:
        later.setattr("isd_nb.studies.evidence.protocol_version", 3)
        noted = {**saved, "question": {**saved["question"], "images": [], "protocol_version": 2}}
        (tmp_path / "later.json").write_text(json.dumps(noted))
        read_result("later", folder=tmp_path)
    assert "by protocol 2 (today 3)\n" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="rows of an earlier version, which did not note their images"):
        assert ledger_of(study, others, test, tail=1).row({"seed": 0}, lambda: {"value": 4})["value"] == 4
    again = json.loads((tmp_path / "toy.json").read_text())
    assert (again["before"]["protocol_version"], again["before"]["rows"]) == (1, saved["rows"])
    read_result("toy", folder=tmp_path)
    assert "by protocol" not in capsys.readouterr().out


def given_as(values: torch.Tensor, kind: str) -> object:
    "The same numbers as other libraries have them."
    return values.numpy() if kind == "array" else values.tolist() if kind == "list" else values


def public_calls() -> dict[str, Callable[..., object]]:
    "What README and the lessons name, each on numbers that `give` hands over."
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=draw)
    floats, features, labels = pixels / 255, torch.randn(12, 5, generator=draw), torch.arange(12) % 4
    torch.manual_seed(0)
    unit, some = torch.nn.functional.normalize(features, dim=1), torch.arange(12) % 2
    net = Encoder(build_backbone(BackboneConfig("tiny", 3, width=4)), [0.5] * 3, [0.2] * 3).eval()
    layer, params = fit_linear(features, labels, epochs=1, min_steps=3), random_draw(STRONG, 6, 8, 8, draw)
    short = dict(epochs=1, min_steps=3)
    return {
        "Views": lambda give: Views(STRONG, 8)(give(pixels), torch.Generator().manual_seed(1)),
        "Views.apply": lambda give: Views(STRONG, 8).apply(give(floats), params),
        "augment": lambda give: augment(give(floats), params, 8),
        "channel_statistics": lambda give: channel_statistics(give(pixels)),
        "Encoder": lambda give: net(give(floats)),
        "Encoder.features": lambda give: net.features(give(floats)),
        "bytes": lambda give: net(give(pixels)),
        "EMATeacher": lambda give: EMATeacher(net)(give(floats)),
        "ISD": lambda give: ISD(net, queue_size=12)(give(floats), give(floats)).keys,
        "enqueue": lambda give: AnchorQueue(8, 5).enqueue(give(unit)),
        "soft_labels": lambda give: soft_labels(give(unit), give(unit)),
        "soft_label_loss": lambda give: soft_label_loss(give(unit), give(unit), give(unit)),
        "streaming": lambda give: streaming_soft_label_loss(give(unit), give(unit), give(unit)),
        "knn": lambda give: evaluation.knn_accuracy(give(features), give(labels), give(features), give(labels), k=2),
        "linear": lambda give: evaluation.linear_accuracy(
            give(features), give(labels), give(features), give(labels), **short),
        "few": lambda give: evaluation.few_label_accuracy(
            give(features), give(labels), give(features), give(labels), 0.5, **short).top1,
        "nearest": lambda give: evaluation.nearest(give(features), give(features), 2),
        "vote": lambda give: evaluation.vote(give(features.abs()), give(labels[None, :5].expand(12, 5).contiguous())),
        "layer": lambda give: layer(give(features)),
        "score": lambda give: evaluation.score(give(features), give(labels)).top1,
        "bootstrap": lambda give: evaluation.bootstrap_interval(give(some > 0)),
        "seeds": lambda give: evaluation.seed_interval(give(features[0])),
        "embed": lambda give: evaluation.embed(net, give(pixels)),
        "ImageSet": lambda give: ImageSet(give(pixels), give(labels[:6])).images,
        "effective_rank": lambda give: collapse.effective_rank(give(features)),
        "feature_spread": lambda give: collapse.feature_spread(give(features)),
        "uniformity": lambda give: collapse.uniformity(give(features)),
    }


REFUSED = {  # calls that take no such numbers: bytes must be uint8, and the parts of ISD take tensors alone
    *(("array", name) for name in ("bytes", "enqueue", "soft_labels", "soft_label_loss", "streaming")),
    *(("list", name) for name in ("Views", "channel_statistics", "bytes", "enqueue", "soft_labels", "soft_label_loss",
                                  "streaming", "embed", "ImageSet")),
}


@pytest.mark.parametrize("kind", ["array", "list"])
@pytest.mark.parametrize("name", public_calls())
def test_arrays_and_lists_are_taken_or_refused_in_a_sentence(name: str, kind: str) -> None:
    def found(kind: str) -> object:
        asked = public_calls()[name]  # made anew: a call may draw random numbers
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return asked(lambda values: given_as(values, kind))
    if (kind, name) in REFUSED:
        with pytest.raises(InputError, match="must be"):
            found(kind)
    else:
        torch.testing.assert_close(found(kind), found("tensor"), check_dtype=False)


LIBRARIES = dict(PIL="pillow", sklearn="scikit-learn", umap="umap-learn", faiss="faiss-cpu", IPython="ipython")
WITH_TORCH = {"triton"}  # comes with PyTorch where it works; without it the code takes another way


def imported(folder: str) -> dict[str, str]:
    "The libraries that the code of a folder imports, each with a file that does."
    found, own = dict[str, str](), {path.stem for part in (folder, "tests") for path in (ROOT / part).rglob("*.py")}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            tops = {name.partition(".")[0] for name in names} - {"isd_nb"} - sys.stdlib_module_names - WITH_TORCH
            found |= {LIBRARIES.get(name, name): path.name for name in tops if folder == "isd_nb" or name not in own}
    return found


@pytest.mark.parametrize(("folder", "extras"), [
    ("isd_nb", "explore timm parquet hub dicom onnx"), ("benchmarks", "bench dev")])
def test_what_the_code_imports_is_declared(folder: str, extras: str) -> None:
    lists = ("requirements", *(f"{extra}_requirements" for extra in extras.split()))
    wanted = " ".join(settings()[name] for name in lists)
    bounds = dict(re.match(r"([\w.-]+)(.*)", entry).groups() for entry in wanted.split())
    assert not {name: file for name, file in imported(folder).items() if name not in bounds}
    assert all(bound for bound in bounds.values())  # each has a lower bound


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_every_python_has_an_environment_of_its_own() -> None:
    for python in ("python3", "python3.12", "/opt/bin/python3.13"):
        venv = ".venv" if python == "python3" else f".venv-{Path(python).name}"
        call = ["make", "-n", "-B", "book", f"PYTHON={python}"]
        said = subprocess.run(call, cwd=ROOT, capture_output=True, text=True).stdout
        assert f"{python} -m venv {venv}\n" in said and f"{venv}/bin/python book/build.py" in said, said
    tested = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert all(f'"3.{minor}"' in tested for minor in (10, 11, 12, 13))


@pytest.mark.parametrize("damage", ["bank_8_names.npz", "bank_8.npy", "bank_8_labels.npy", "about.json"])
def test_a_damaged_packed_set_is_refused_in_a_sentence(damage: str, pets: Path, tmp_path: Path) -> None:
    assert call(isd_pack, tmp_path, f"folder:{pets}", "packed", "--size", "8", "--root", "cache").returncode == 0
    file = tmp_path / "packed" / damage
    whole = file.read_bytes()
    for bad in (whole[:len(whole) // 2], whole[:60] + b"{((" + whole[63:], whole.replace(b"shape", b"shame")):
        file.write_bytes(bad)
        try:
            load_sets(f"packed:{tmp_path / 'packed'}", 8)
        except InputError as refused:
            assert "pack" in str(refused)
    file.write_bytes(whole[:40])
    with pytest.raises(InputError, match=r"isd_pack|pack the images again"):
        load_sets(f"packed:{tmp_path / 'packed'}", 8)


def test_a_fuzz_run_keeps_its_command_and_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = dict(inputs=1, seconds=0.0, ends={}, found=["none"])
    monkeypatch.setattr("fuzz.fuzz", lambda *given, **more: dict(nothing, found=[]))
    monkeypatch.setattr("fuzz.planted", lambda *given, **more: nothing)
    monkeypatch.setattr("sys.argv", ["tests/fuzz.py", "--count", "1", "--out", str(tmp_path / "fuzz.json")])
    assert fuzz.main() == 0
    saved = json.loads((tmp_path / "fuzz.json").read_text())
    assert saved["command"].startswith("python tests/fuzz.py --count 1") and saved["machine"] == machine()
