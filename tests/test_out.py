"""What leaves the house: exported encoders, and the Hub through a cache and an API that are made up."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import call
from torch.testing import assert_close

from isd_nb.cli.export import isd_export
from isd_nb.encoders import BackboneConfig, Encoder, build_backbone, load_encoder, save_encoder
from isd_nb.engine.export import export_encoder, push_to_hub
from isd_nb.errors import InputError

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    "A run's directory as far as sharing needs it, with paths of this machine in its recipe."
    torch.manual_seed(0)
    config = BackboneConfig("tiny", 3, 4)
    encoders = {w: Encoder(build_backbone(config), [0.4] * 3, [0.2] * 3).eval() for w in ("student", "teacher")}
    recipe = dict(name="mine", method="isd", seed=1, data=f"folder:{tmp_path}/birds?labels={tmp_path}/l.csv")
    recipe["init"] = f"{tmp_path}/weights.pth"
    save_encoder(tmp_path / "run/encoder.safetensors", encoders, config, 16, dict(recipe=recipe, classes=["a", "b"]))
    scores = {f"{k}_{w}": 0.5 for k in ("knn1", "knn20", "linear") for w in encoders}
    (tmp_path / "run/summary.json").write_text(json.dumps(scores | dict(images_seen=64)))
    return tmp_path / "run"


@pytest.mark.parametrize("ending", [".pt", ".pt2", ".onnx"])
def test_exported_features_are_the_encoders(ending: str, run: Path, tmp_path: Path) -> None:
    if ending == ".onnx":
        pytest.importorskip("onnxruntime")
    out = tmp_path / f"encoder{ending}"
    done = call(isd_export, tmp_path, "run", "--out", out.name)
    assert done.returncode == 0 and "agree" in done.stdout, done.stderr
    images = torch.rand(7, 3, 16, 16)
    want = load_encoder(run)(images)
    if ending == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    else:
        found = torch.jit.load(out)(images) if ending == ".pt" else torch.export.load(out).module()(images)
    assert_close(found, want, atol=1e-5, rtol=1e-4)
    assert str(tmp_path).encode() not in out.read_bytes()


@pytest.mark.parametrize("broken", [True, False])
def test_a_network_that_onnx_cannot_hold_is_one_sentence(broken: bool, tmp_path: Path, capfd: Any) -> None:
    pytest.importorskip("onnxruntime")
    config = BackboneConfig("tiny", 3, 4)
    encoder = Encoder(build_backbone(config), [0.4] * 3, [0.2] * 3).eval()
    save_encoder(tmp_path / "mine.safetensors", {"student": encoder}, config, 16)
    frozen = load_encoder(tmp_path / "mine.safetensors", "student")
    if broken:
        layer = torch.nn.TransformerEncoderLayer(32, 2, 8, batch_first=True)
        tail = (torch.nn.Unflatten(1, (1, 32)), torch.nn.TransformerEncoder(layer, 1), torch.nn.Flatten())
        frozen.backbone = torch.nn.Sequential(frozen.backbone, *tail).eval()
        with pytest.raises(InputError, match=r"tiny cannot be written as \.onnx \(Exporting the operator"):
            export_encoder(frozen, tmp_path / "mine.onnx")
    else:
        export_encoder(frozen, tmp_path / "mine.onnx")
    os.write(1, b"end\n")  # the standard output is there again
    print("end")
    assert capfd.readouterr().out == "end\nend\n"


def test_an_unknown_ending_and_nothing_to_do(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.onnx, \.pt2 or \.pt"):
        export_encoder(str(run), tmp_path / "encoder.tflite")
    assert "--push OWNER/NAME" in call(isd_export, tmp_path, "run").stderr


@pytest.mark.parametrize(("options", "words"), [
    (("--push", "me/birds", "--size", "32"), "--size goes with .onnx, .pt2 and .pt: me/birds"),
    (("--out", "birds", "--public"), "--public goes with --push OWNER/NAME"),
    (("--out", "birds.pt", "--licence", "mit"), "--licence is for the card of a run that is passed on"),
])
def test_options_that_would_have_no_effect_are_refused(options: tuple, words: str, run: Path, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isd_nb.cli.export.push_to_hub", lambda *given: pytest.fail("it was sent"))
    done = call(isd_export, tmp_path, run, *options)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not [path for path in tmp_path.iterdir() if "birds" in path.name]


def test_options_that_have_an_effect_are_taken(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple] = []
    monkeypatch.setattr("isd_nb.cli.export.push_to_hub", lambda *given: sent.append(given) or "there")
    wanted = ("--push", "me/birds", "--public", "--licence", "mit", "--out", "birds.pt", "--size", "16")
    assert call(isd_export, tmp_path, run, *wanted).returncode == 0
    assert call(isd_export, tmp_path, run, "--push", "me/birds").returncode == 0
    assert sent == [(str(run), "me/birds", False, "mit"), (str(run), "me/birds", True, "apache-2.0")]


class FakeApi:
    "Takes what is sent to it."

    sent: dict[str, bytes] = {}  # noqa: RUF012
    fails: str = ""

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
        type(self).private = private

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> Any:
        if self.fails:
            raise OSError(f"{self.fails}\nmore lines")
        type(self).sent = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}


def test_a_push_sends_weights_and_card_and_no_path(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    push_to_hub(run, "me/birds")
    assert set(FakeApi.sent) == {"encoder.safetensors", "README.md"} and FakeApi.private
    assert not any(str(run.parent).encode() in content for content in FakeApi.sent.values())
    card = huggingface_hub.ModelCard(FakeApi.sent["README.md"].decode())
    results = card.data.eval_results
    assert card.data.library_name == "isd_nb" and {r.metric_value for r in results} == {0.5} and len(results) == 6
    assert 'load_encoder("hub:me/birds"' in card.text and "folder:birds" in card.text
    monkeypatch.setattr(FakeApi, "fails", "401 no token")
    with pytest.raises(InputError, match="401 no token") as refused:
        push_to_hub(run, "me/birds")
    assert "\n" not in str(refused.value)


def test_a_model_in_the_cache_is_an_encoder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    push_to_hub(run, "me/birds")
    cache, commit = tmp_path / "cache/models--me--birds", "a" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text(commit)
    (cache / "snapshots" / commit).mkdir(parents=True)
    (cache / "snapshots" / commit / "encoder.safetensors").write_bytes(FakeApi.sent["encoder.safetensors"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    images = torch.rand(3, 3, 16, 16)
    for which in ("teacher", "student"):
        assert_close(load_encoder("hub:me/birds", which)(images), load_encoder(run, which)(images))
    assert_close(load_encoder(f"hub:me/birds@{commit}")(images), load_encoder(run)(images))
    for name, words in (("me/absent", "cannot be had"), ("absent", "OWNER/NAME")):
        with pytest.raises(InputError, match=words) as refused:
            load_encoder(f"hub:{name}")
        assert "\n" not in str(refused.value)
    shutil.rmtree(cache)
