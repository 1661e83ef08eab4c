"""What a command writes takes the place of nothing that it was not asked to replace, and what it reports is true."""

import json
import os
import signal
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image

from isd_nb.cli.embed import isd_embed
from isd_nb.cli.evaluate import isd_eval
from isd_nb.cli.explore import isd_explore
from isd_nb.cli.export import isd_export
from isd_nb.cli.pack import pack
from isd_nb.encoders import BackboneConfig, Encoder, build_backbone, load_encoder, save_encoder
from isd_nb.engine import export
from isd_nb.engine.embedding import embed_to_file
from isd_nb.engine.evaluate_source import evaluate_source
from isd_nb.engine.export import export_encoder
from isd_nb.engine.report import near_duplicates, neighbours_of
from isd_nb.errors import refusal
from isd_nb.explore.explorer import read_own
from isd_nb.explore.gallery import Gallery, run_images
from isd_nb.recipe import Recipe
from isd_nb.sources import packed
from isd_nb.sources.digits import digits
from isd_nb.studies.compare import read_settings


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    "A network with random weights, in a file."
    return random_encoder(tmp_path / "tiny.safetensors")


def random_encoder(place: Path, seed: int = 0, scale: float = 1) -> Path:
    torch.manual_seed(seed)
    config = BackboneConfig("tiny", channels=3, width=2)
    teacher = Encoder(build_backbone(config), [0.5] * 3, [0.2] * 3)
    with torch.no_grad():
        for weights in teacher.parameters():
            weights *= scale
    save_encoder(place, {"teacher": teacher}, config, 8)
    return place


@pytest.fixture
def images(tmp_path: Path) -> str:
    "Twenty images of two classes, as `--data` names them."
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)):
        (tmp_path / "set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "set" / "ab"[i % 2] / f"{i}.png")
    return f"folder:{tmp_path / 'set'}"


def flat(folder: Path, images: str) -> str:
    "The same images without classes."
    (folder / "flat").mkdir()
    for path in Path(images.removeprefix("folder:")).rglob("*.png"):
        (folder / "flat" / path.name).write_bytes(path.read_bytes())
    return f"folder:{folder / 'flat'}"


def refused(result: CompletedProcess, words: str) -> None:
    "The command has ended with one sentence that has these words."
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert words in result.stderr, result.stderr


def test_an_export_does_not_overwrite_its_source(tmp_path: Path) -> None:
    network = build_backbone(BackboneConfig("resnet18", 3, stem="small"))
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    before = (tmp_path / "mine.pt").read_bytes()
    (tmp_path / "link.pt").symlink_to("mine.pt")
    for source, out in (("mine.pt", "mine.pt"), ("resnet18@mine.pt", tmp_path / "mine.pt"), ("mine.pt", "link.pt")):
        done = call(isd_export, tmp_path, source, "--size", "32", "--out", out)
        refused(done, "is the file that the encoder is read from")
    assert (tmp_path / "mine.pt").read_bytes() == before


@pytest.mark.parametrize("ending", [".pt", ".pt2", ".onnx"])
def test_an_export_takes_the_place_of_an_export_alone(ending: str, encoder: Path, tmp_path: Path) -> None:
    if ending == ".onnx":
        pytest.importorskip("onnxruntime")
    out = tmp_path / f"mine{ending}"
    torch.save({"epoch": 90}, out)  # a checkpoint of the reader's own
    checkpoint = out.read_bytes()
    for before in (checkpoint, b"no zip"):
        out.write_bytes(before)
        refused(call(isd_export, tmp_path, encoder, "--out", out), "no isd_export has written it")
        assert out.read_bytes() == before
    out.write_bytes(b"")
    for _ in range(2):  # into an empty file, and over an earlier export
        export_encoder(str(encoder), out)
    assert export.is_exported(out) and sorted(os.listdir(tmp_path)) == sorted([out.name, encoder.name])


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_an_encoder_can_be_read_by_those_who_read_its_neighbours(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        (tmp_path / "neighbour").write_text("")
        for _ in range(2):
            file = random_encoder(tmp_path / "encoder.safetensors")
            assert file.stat().st_mode == (tmp_path / "neighbour").stat().st_mode
    finally:
        os.umask(before)


def test_an_export_that_fails_leaves_the_earlier_one(encoder: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: object) -> object:
        return lambda images: to_torchscript(*arguments)(images) + 1

    def broken(module: object, images: object, out: Path, about: object) -> object:
        out.write_bytes(b"half")
        raise RuntimeError("not to be followed")
    to_torchscript, out = export.to_torchscript, tmp_path / "good.pt"
    export_encoder(str(encoder), out)
    good = out.read_bytes()
    for writer, words in ((wrong, "its features differ by"), (broken, "not to be followed")):
        monkeypatch.setitem(export.formats, ".pt", writer)
        assert words in refusal(export_encoder, str(encoder), out)
        assert out.read_bytes() == good and sorted(os.listdir(tmp_path)) == ["good.pt", "tiny.safetensors"]
    (tmp_path / "folder.pt").mkdir()
    assert "is a folder" in refusal(export_encoder, str(encoder), tmp_path / "folder.pt")
    assert load_encoder(encoder)(torch.rand(2, 3, 8, 8)).isfinite().all()


def test_two_results_are_not_written_to_one_file(encoder: Path, images: str, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr("isd_nb.engine.embedding.embed_alone", lambda *arguments: pytest.fail("it was computed"))
    monkeypatch.setattr("isd_nb.cli.embed.check_atlas", lambda path: None)  # imports for seconds
    here = sorted(tmp_path.rglob("*"))
    for wanted in (["--out", "same.parquet", "--atlas", "same.parquet"],
                   ["--out", "./same.parquet", "--atlas", tmp_path / "same.parquet"],
                   ["--out", "rpt/outliers.csv", "--report", "rpt"],
                   ["--out", "rpt/near_duplicates.npy", "--report", "rpt/../rpt"],
                   ["--out", "rpt.csv", "--report", "rpt.csv"]):
        refused(call(isd_embed, tmp_path, encoder, "--data", images, *wanted), "would be written to one place")
    assert sorted(tmp_path.rglob("*")) == here


def test_what_cannot_become_a_file_is_refused_before_anything_is_computed(encoder: Path, images: str, tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isd_nb.engine.embedding.embed_alone", lambda *arguments: pytest.fail("it was computed"))
    (tmp_path / "dd.csv").mkdir()
    (tmp_path / "note").write_text("mine")
    for wanted, words in ((["--out", "dd.csv"], "dd.csv is a folder"), (["--out", "dd.npy"], "dd.csv is a folder"),
                          (["--out", "note/f.csv"], "is a file and no folder"),
                          (["--out", "f.csv", "--report", "note"], "is a file and no folder")):
        refused(call(isd_embed, tmp_path, encoder, "--data", images, *wanted), words)


def test_a_report_overwrites_no_table_that_is_not_its_own(encoder: Path, images: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    own = tmp_path / "mine/outliers.csv"
    own.write_text("name,weight\n")
    for command in ([isd_embed, tmp_path, encoder, "--out", "f.npy"], [isd_explore, tmp_path, "--encoder", encoder]):
        refused(call(*command, "--data", images, "--report", "mine"), "is no table of a report")
        assert own.read_text() == "name,weight\n" and not (tmp_path / "f.npy").exists()
    own.unlink()
    wanted = ["--data", images, "--report", "mine"]
    for _ in range(2):  # its own tables are replaced
        assert call(isd_embed, tmp_path, encoder, *wanted, "--out", "f.npy").returncode == 0
        assert call(isd_explore, tmp_path, "--encoder", encoder, *wanted).returncode == 0
    wanted = ["--data", f"{flat(tmp_path, images)}?labels=mine/outliers.csv", "--report", "mine"]
    refused(call(isd_explore, tmp_path, "--encoder", encoder, *wanted), "is the table of labels")


def test_only_tables_that_were_written_are_announced(encoder: Path, images: str, tmp_path: Path) -> None:
    wanted = ["--out", "f.npy", "--report", "tables"]
    first = call(isd_embed, tmp_path, encoder, "--data", images, *wanted)
    assert "near_duplicates.csv, outliers.csv, suspect_labels.csv in tables" in first.stdout
    second = call(isd_embed, tmp_path, encoder, "--data", flat(tmp_path, images), *wanted)
    assert second.returncode == 0 and "near_duplicates.csv, outliers.csv in tables" in second.stdout, second.stderr
    assert sorted(os.listdir(tmp_path / "tables")) == ["near_duplicates.csv", "outliers.csv"]


def test_packing_that_is_ended_by_sigterm_leaves_nothing(images: str, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    def half(folder: Path, *rest: object) -> None:
        (folder / "bank_8.npy").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    monkeypatch.setattr(packed, "write_part", half)
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("nothing was cleared away"))
    try:
        with pytest.raises(SystemExit) as ended:
            pack(images, tmp_path / "packed", 8, root=tmp_path / "root")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143 and not [path for path in tmp_path.iterdir() if "packed" in path.name]


@pytest.mark.parametrize("kind", ["deep", "colour"])
def test_a_readers_own_image_is_read_as_those_of_the_gallery(kind: str, tmp_path: Path) -> None:
    deep, generator = kind == "deep", np.random.default_rng(0)
    for i in range(10):
        shape = (24, 30) if deep else (24, 30, 3)
        pixels = generator.integers(0, 3000 if deep else 256, shape).astype(np.uint16 if deep else np.uint8)
        (tmp_path / "set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "set" / "ab"[i % 2] / f"{i}.png")
    recipe = Recipe("tiny", data=f"folder:{tmp_path / 'set'}", image_size=12, stored_size=20)
    shown = run_images(recipe, None, tmp_path, 100, 1 if deep else 3)
    gallery = Gallery(shown, {}, {}, {}, encode=lambda moment, pixels: pixels)
    for i in range(len(shown)):
        assert torch.equal(read_own(gallery, shown.paths[i].name, shown.paths[i].read_bytes())[1], shown.get([i]))


def test_every_copy_of_an_image_is_a_near_duplicate() -> None:
    torch.manual_seed(0)
    features = torch.randn(40, 8)
    features[[9, 20, 31]] = features[3].clone()
    features[5] = features[17] + 0.01  # a pair that is close, but no copy
    pairs = near_duplicates(*neighbours_of(features))
    copies = [pair for pair in pairs if pair[2] >= 0.9999 and {*pair[:2]} <= {3, 9, 20, 31}]
    assert {row for pair in copies for row in pair[:2]} == {3, 9, 20, 31}
    assert len({first for first, _, _ in pairs}) == len(pairs) == len({frozenset(pair[:2]) for pair in pairs})
    assert pairs == sorted(pairs, key=lambda pair: -pair[2]) and {(5, 17)} <= {pair[:2] for pair in pairs}
    assert near_duplicates(*neighbours_of(features), 2) == pairs[:2]
    few = near_duplicates(*neighbours_of(features[:3].repeat(4, 1)))  # three images, four times each
    assert {row for pair in few for row in pair[:2]} == {*range(12)}


@pytest.mark.parametrize("content", [b'{"isd": {"settings": [1]}}', b'{"isd": {"settings": null}}', b"\xff\xfe{"])
def test_settings_that_are_none_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tuned.json").write_bytes(content)
    assert "tuned.json" in refusal(read_settings, tmp_path / "tuned.json")
    (tmp_path / "tuned.json").write_text(json.dumps({"isd": {"settings": {"momentum": 0.9}, "trials": [1, 2]}}))
    assert read_settings(tmp_path / "tuned.json") == {"isd": ({"momentum": 0.9}, 2)}


def test_two_sources_whose_names_differ_in_a_character_share_no_place(images: str, tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["e-1.safetensors", "e_1.safetensors", "模.safetensors", "型.safetensors"]
    for i, name in enumerate(names):
        random_encoder(tmp_path / name, i)
        assert call(isd_eval, tmp_path, "--encoder", name, "--data", images).returncode == 0
    answers = [json.loads(path.read_text()) for path in (tmp_path / "runs/sources").glob("*/eval/*.json")]
    assert sorted(values["source"] for values in answers) == sorted(names)
    both = ["--encoder", names[0], "--encoder", names[1]]
    done = call(isd_explore, tmp_path, *both, "--data", images, "--report", "rep")
    assert done.returncode == 0 and len(os.listdir(tmp_path / "rep")) == 2, done.stderr
    refused(call(isd_explore, tmp_path, *both[:2], *both[:2], "--data", images, "--report", "rep"), "that differ")


def test_answers_of_earlier_versions_are_found(encoder: Path, images: str, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = Path("runs/sources/tiny_safetensors")
    first = evaluate_source("tiny.safetensors", data=images, out=before, device="cpu")
    stamp = Path(first["file"]).stat().st_mtime_ns
    again = evaluate_source("tiny.safetensors", data=images, device="cpu")
    assert again["file"] == first["file"] and Path(first["file"]).stat().st_mtime_ns == stamp
    random_encoder(tmp_path / "tiny-safetensors", 1).rename("tiny_.safetensors")
    other = evaluate_source("tiny_.safetensors", data=images, device="cpu")
    assert other["file"] != first["file"] and Path(first["file"]).stat().st_mtime_ns == stamp


def test_a_function_gets_images_as_they_are_and_an_encoder_its_channels(tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    class OneChannel(Encoder):
        def to(self, *places: object) -> None:
            raise AssertionError("the caller's module is not moved")
    channels = set[int]()

    def some(batch: torch.Tensor) -> torch.Tensor:
        channels.add(batch.shape[1])
        return batch.flatten(1)
    few = tuple(images.subset(range(60)) for images in digits(16, copies=1))
    monkeypatch.setattr("isd_nb.sources.door.digits", lambda size: few)
    for source in (some, OneChannel(build_backbone(BackboneConfig("tiny", channels=1, width=2)), [0.5], [0.2])):
        evaluate_source(source, data="digits", size=16, out=tmp_path / type(source).__name__, device="cpu")
    assert channels == {1}


def test_features_that_are_no_numbers_are_refused(images: str, tmp_path: Path) -> None:
    random_encoder(tmp_path / "bad.safetensors", scale=1e30)

    def some(batch: torch.Tensor) -> torch.Tensor:  # only of dark images
        return batch.flatten(2).mean(2) / (batch.flatten(1).mean(1, keepdim=True) > 0.05)
    dark = Path(images.removeprefix("folder:")) / "b/dark.png"
    for wanted in (["--out", "f.npy"], ["--out", "f.npy", "--report", "tables"]):
        done = call(isd_embed, tmp_path, "bad.safetensors", "--data", images, *wanted)
        refused(done, "bad.safetensors makes NaN or infinite features, first of")
        assert sorted(os.listdir(tmp_path)) == ["bad.safetensors", "data", "set"]
    Image.new("RGB", (8, 8)).save(dark)
    assert f"some makes NaN or infinite features, first of {dark}" in refusal(
        embed_to_file, some, images, tmp_path / "f.npy", size=8, device="cpu", root=tmp_path / "data")
    assert not (tmp_path / "f.npy").exists()
