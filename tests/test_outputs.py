"""What a command writes takes the place of nothing that it was not asked to replace, and what it reports is true."""

import os
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image

from isd_nb.cli.embed import isd_embed
from isd_nb.cli.explore import isd_explore
from isd_nb.cli.export import isd_export
from isd_nb.encoders import BackboneConfig, Encoder, build_backbone, load_encoder, save_encoder
from isd_nb.engine import export
from isd_nb.engine.export import export_encoder
from isd_nb.errors import refusal


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    "A network with random weights, in a file."
    return random_encoder(tmp_path / "tiny.safetensors")


def random_encoder(place: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = BackboneConfig("tiny", channels=3, width=2)
    save_encoder(place, {"teacher": Encoder(build_backbone(config), [0.5] * 3, [0.2] * 3)}, config, 8)
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
        refused(call(isd_export, tmp_path, source, "--size", "32", "--out", out), "is the file that the encoder is read")
    assert (tmp_path / "mine.pt").read_bytes() == before


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
