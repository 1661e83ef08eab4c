"""What a command writes takes the place of nothing that it was not asked to replace, and what it reports is true."""

from pathlib import Path

import pytest
import torch
from conftest import call

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


def refused(result, words: str) -> None:
    "The command has ended with one sentence that has these words."
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert words in result.stderr, result.stderr


def test_an_export_does_not_overwrite_its_source(tmp_path: Path) -> None:
    network = build_backbone(BackboneConfig("resnet18", 3, stem="small"))
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    before = (tmp_path / "mine.pt").read_bytes()
    (tmp_path / "link.pt").symlink_to("mine.pt")
    for source, out in (("mine.pt", "mine.pt"), ("resnet18@mine.pt", tmp_path / "mine.pt"), ("mine.pt", "link.pt")):
        refused(call(isd_export, tmp_path, source, "--size", "32", "--out", out), "is the file that the encoder is read from")
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
        assert out.read_bytes() == good and sorted(p.name for p in tmp_path.iterdir()) == ["good.pt", "tiny.safetensors"]
    (tmp_path / "folder.pt").mkdir()
    assert "is a folder" in refusal(export_encoder, str(encoder), tmp_path / "folder.pt")
    assert load_encoder(encoder)(torch.rand(2, 3, 8, 8)).isfinite().all()
