"""What a user has stays, what was computed is kept, and what is asked for is done or refused."""
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, TINY, call
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close

from isd_nb.cli.compare import isd_compare
from isd_nb.cli.embed import isd_embed
from isd_nb.cli.evaluate import isd_eval
from isd_nb.cli.explore import isd_explore
from isd_nb.cli.export import isd_export
from isd_nb.cli.pack import isd_pack
from isd_nb.cli.train import isd_train
from isd_nb.data import ImageSet
from isd_nb.encoders import load_encoder, save_encoder
from isd_nb.engine.launch import ended_by_sigterm, in_words
from isd_nb.engine.model_card import code_span, front_matter, model_card
from isd_nb.engine.report import suspect_labels
from isd_nb.engine.runs import read_metrics
from isd_nb.engine.training import train
from isd_nb.engine.whole import train as train_whole
from isd_nb.errors import refusal
from isd_nb.loss import soft_label_loss, streaming_soft_label_loss
from isd_nb.methods.building import build_method, with_method
from isd_nb.methods.checkpoints import open_encoder
from isd_nb.recipe import Recipe, find_recipe

ALONE = ("--processes", "1", "--no-figures", "--no-supervised")
QUICK = Recipe("tiny", steps=4, evaluations=2, batch_size=16, queue_size=32, width=4, projector=(8,), predictor=(8,))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("kept")
    for i in range(60):
        (place / "small" / ("train" if i < 40 else "test") / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        picture(i).save(place / "small" / ("train" if i < 40 else "test") / "ab"[i % 2] / f"{i}.png")
    assert call(isd_train, place, "--out", "run", *SMALL, *ALONE, *TINY).returncode == 0
    return place / "run"


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8))


def one_sentence(result, words: str) -> None:
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert words in result.stderr, result.stderr


def labelled(folder: Path) -> list[str]:
    "A flat folder and its table of labels; the options that name both."
    (folder / "flat").mkdir()
    lines = ["file,label"]
    for i in range(8):
        picture(i).save(folder / f"flat/{i}.png")
        lines.append(f"{i}.png,{'ab'[i % 2]}")
    (folder / "mine.csv").write_text("\n".join(lines) + "\n")
    return ["--data", "folder:flat", "--labels", "mine.csv"]


def test_a_table_of_labels_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    options, before = labelled(tmp_path), (tmp_path / "mine.csv").read_bytes()
    for out in ("mine.npy", "mine.csv"):
        one_sentence(call(isd_embed, tmp_path, run, *options, "--out", out), "is the table of labels")
    (tmp_path / "notes.csv").write_text("name,weight\n")
    one_sentence(call(isd_embed, tmp_path, run, *options, "--out", "notes.npy"), "is no table of isd_embed")
    assert (tmp_path / "mine.csv").read_bytes() == before and (tmp_path / "notes.csv").read_text() == "name,weight\n"
    for _ in range(2):  # its own table is written again
        assert call(isd_embed, tmp_path, run, *options, "--out", "new.npy").returncode == 0
    assert not list(tmp_path.glob(".*"))


def test_two_commands_do_not_write_one_file(run: Path, tmp_path: Path) -> None:
    code = ("import sys; from pathlib import Path; from isd_nb.errors import locked\n"
            "with locked(Path(sys.argv[1]), wait=False): print('held', flush=True); sys.stdin.read()")
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / ".f.npy.unfinished"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    options = labelled(tmp_path)
    one_sentence(call(isd_embed, tmp_path, run, *options, "--out", "f.npy"), "another process is writing f.npy")
    holder.communicate("")
    assert call(isd_embed, tmp_path, run, *options, "--out", "f.npy").returncode == 0


def test_answers_to_other_settings_stay(run: Path) -> None:
    few = ("run", "--protocol", "few-labels", "--epochs", "1", "--encoder", "teacher", "--device", "cpu")
    twice = ("--min-steps", "10", "--fractions", "0.1,0.1", "--seeds", "2")
    assert call(isd_eval, run.parent, *few, *twice).returncode == 0
    first = json.loads((run / "eval/few-labels.json").read_text())["rows"]
    assert len(first) == 2, "a fraction that is named twice is drawn once"
    assert call(isd_eval, run.parent, *few, "--min-steps", "11", "--fractions", "0.1", "--seeds", "1").returncode == 0
    assert json.loads((run / "eval/few-labels.json").read_text())["rows"] == first
    assert len(list((run / "eval").glob("few-labels-*.json"))) == 1
    neighbours = ("run", "--encoder", "teacher", "--device", "cpu")
    assert call(isd_eval, run.parent, *neighbours).returncode == 0
    stamp = (run / "eval/knn.json").stat().st_mtime_ns
    assert call(isd_eval, run.parent, *neighbours, "--backbone-rate", "0.5").returncode == 0  # neighbours have no rate
    assert (run / "eval/knn.json").stat().st_mtime_ns == stamp


def test_untrained_is_untrained_where_a_run_began_with_weights(run: Path) -> None:
    ways = ("--init", "run", "--out", "on", *SMALL, *ALONE, *TINY)
    assert call(isd_train, run.parent, *ways).returncode == 0
    assert call(isd_eval, run.parent, "on", "--baselines", "--device", "cpu").returncode == 0
    rows = {row["encoder"]: row for row in json.loads((run.parent / "on/eval/knn.json").read_text())["rows"]}
    summary = json.loads((run.parent / "on/summary.json").read_text())
    assert rows["untrained net"]["20-nn"] == summary["knn20_untrained"]


def test_a_card_states_whether_labels_were_used(run: Path, tmp_path: Path) -> None:
    assert "trained without labels" in model_card(run) and "used for evaluation only" in model_card(run)
    images = f"folder:{run.parent / 'small'}"
    train_whole(with_method(QUICK, "supervised"), images, tmp_path / "sup", device="cpu", root=tmp_path)
    card = model_card(tmp_path / "sup")
    assert "trained with labels" in card and "learned from" in card and "evaluation only" not in card


LICENCES = ("apache-2.0", "cc-by-nc-4.0: research only", "[x", "*", "no", "other # mine", "a\nb: c", "1.0", "- x")


@pytest.mark.parametrize("licence", LICENCES)
def test_any_licence_is_a_text_in_the_header_of_a_card(licence: str) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    header = yaml.safe_load(front_matter(licence).strip("-"))
    assert header["license"] == licence.replace("\n", r"\x0a") and header["library_name"] == "isd_nb"


def test_a_name_stays_code_in_a_card() -> None:
    assert code_span("folder:a") == "`folder:a`"
    assert code_span("folder:`<img src=x>``") == "``` folder:`<img src=x>`` ```"


def test_a_temperature_may_be_learned() -> None:
    g = torch.Generator().manual_seed(0)
    vectors = [torch.nn.functional.normalize(torch.randn(n, 6, generator=g), dim=1) for n in (4, 4, 20)]
    found = []
    for loss in (soft_label_loss, streaming_soft_label_loss):
        temperature, queries = torch.tensor(0.1, requires_grad=True), vectors[0].clone().requires_grad_()
        loss(queries, *vectors[1:], temperature).backward()
        found.append((temperature.grad, queries.grad))
    assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_file_of_a_newer_version_gets_one_sentence(run: Path, tmp_path: Path) -> None:
    with safe_open(run / "encoder.safetensors", "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dictionary
    about = json.loads(header["isd_nb"])
    about["config"]["new_field"] = 1
    save_file(tensors, tmp_path / "new.safetensors", metadata=header | {"isd_nb": json.dumps(about)})
    assert "newer isd_nb" in refusal(open_encoder, str(tmp_path / "new.safetensors"))
    one_sentence(call(isd_embed, tmp_path, "new.safetensors", "--data", "digits", "--out", "f.npy"), "new_field")


def test_weights_in_bfloat16_are_embedded(run: Path, tmp_path: Path) -> None:
    encoder = load_encoder(run).bfloat16()
    save_encoder(tmp_path / "half.safetensors", {"teacher": encoder}, encoder.config, 16)
    options = labelled(tmp_path)
    assert call(isd_embed, tmp_path, "half.safetensors", *options, "--out", "f.npy").returncode == 0
    assert np.isfinite(np.load(tmp_path / "f.npy")).all()


def test_a_damaged_comparison_is_named(tmp_path: Path) -> None:
    (tmp_path / "cmp").mkdir()
    (tmp_path / "cmp/comparison.json").write_text("{")
    asked = ("--methods", "isd", "--seeds", "0", "--out", "cmp")
    one_sentence(call(isd_compare, tmp_path, *asked), "comparison.json is damaged")


def test_the_command_that_packing_prints_works(run: Path, tmp_path: Path) -> None:
    said = call(isd_pack, tmp_path, f"folder:{run.parent / 'small'}", "packed", "--size", "12", "--root", "root").stdout
    command = said.rpartition("Next: isd_train ")[2].split()
    done = call(isd_train, tmp_path, *command, "--dry-run", "--root", "root", *TINY)
    assert done.returncode == 0 and "12 x 12" in done.stdout, done.stderr


def test_options_are_used_or_refused(run: Path, tmp_path: Path) -> None:
    one_sentence(call(isd_train, tmp_path, "--processes", "3", "--dry-run", "--steps", "3"), "3 processes cannot share")
    two = call(isd_train, tmp_path, "--processes", "2", "--dry-run", "--steps", "3").stdout
    assert "2 processes" in two
    one_sentence(call(isd_eval, run.parent, "run", "--size", "64"), "--size goes with --encoder")
    one_sentence(call(isd_explore, run.parent, "run", "--size", "64", "--report", "r"), "--size goes with --encoder")
    one_sentence(call(isd_explore, run.parent, "run", "--html", "nowhere/x.html"), "folder nowhere for --html")
    one_sentence(call(isd_train, tmp_path, "--method", "swav", "--set", 'options={"prototypes":0}', *ALONE, *TINY),
                 "prototypes must be 1 or more")


@pytest.mark.usefixtures("small")
def test_a_rank_of_another_program_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert call(isd_train, tmp_path, "--out", "run", *SMALL, *ALONE, *TINY).returncode == 0
    assert (tmp_path / "run/encoder.safetensors").is_file() and (tmp_path / "run/summary.json").is_file()


def test_suspects_of_many_images_are_those_of_a_plain_count() -> None:
    g = torch.Generator().manual_seed(0)
    rows, labels = torch.randint(5000, (5000, 10), generator=g), torch.randint(7, (5000,), generator=g)
    near = labels[rows].tolist()
    found = suspect_labels(rows, labels, 7)
    for i, other, share, own in found:
        counts = [near[i].count(c) for c in range(7)]
        assert counts[labels[i]] / 10 == pytest.approx(own) and counts[other] / 10 == pytest.approx(share)
        assert counts[other] == max(n for c, n in enumerate(counts) if c != labels[i]) > counts[labels[i]]
    pairs = list(zip(near, labels.tolist(), strict=True))
    expected = sum(max(row.count(c) for c in range(7) if c != own) > row.count(own) for row, own in pairs)
    assert len(found) == expected > 4096 // 2


def test_sigterm_ends_as_an_exit_does() -> None:
    assert threading.current_thread() is threading.main_thread()
    before, cleared = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(SystemExit) as ended, ended_by_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleared.append(True)
    assert ended.value.code == 143 and cleared and signal.getsignal(signal.SIGTERM) == before


def test_an_unused_parameter_is_named_where_processes_fail() -> None:
    error = RuntimeError("Expected to have finished reduction in the prior iteration before starting a new one.")
    assert "--processes 1" in in_words(error)


@pytest.mark.parametrize("command", [isd_train, isd_eval, isd_embed, isd_explore, isd_compare, isd_pack, isd_export])
def test_where_memory_is_short_a_command_names_its_own_options(command, tmp_path: Path) -> None:
    help_text = call(command, tmp_path, "--help").stdout
    for error in (MemoryError(), torch.OutOfMemoryError()):
        said = in_words(error, command.__name__)
        options = re.findall(r"--[a-z-]+", said)
        assert options and all(re.search(rf"{option}\b", help_text) for option in options), said
    assert in_words(MemoryError()) == "the memory of this machine is used up"


def test_a_letter_that_the_locale_lacks_is_one_sentence() -> None:
    with pytest.raises(UnicodeEncodeError) as refused:
        "caf\xe9".encode("ascii")
    assert "'caf\\xe9' has letters that ascii lacks" in in_words(refused.value, "isd_embed")


def test_an_evaluation_that_failed_is_made_on_resume(tmp_path: Path) -> None:
    images, failing = ImageSet(torch.randint(0, 256, (64, 1, 16, 16), dtype=torch.uint8)), [True]

    def evaluate(method: object) -> dict[str, float]:
        if failing[0] and (tmp_path / "run/checkpoints/encoder_00000004.safetensors").exists():
            raise OSError("no space")
        return {"mine": 1.0}
    how = dict(device="cpu", show=False, threads=1)
    with pytest.raises(OSError, match="no space"):
        train(QUICK, images, tmp_path / "run", evaluate, **how)
    failed = read_metrics(tmp_path / "run")
    assert failed[-1]["step"] == 4 and "mine" not in failed[-1]
    failing[0] = False
    train(QUICK, images, tmp_path / "run", evaluate, resume=True, **how)
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [row["step"] for row in failed]
    assert rows[-1]["mine"] == 1.0 and rows[-1]["loss"] == failed[-1]["loss"]


def test_narrow_residual_networks_learn_in_single_precision() -> None:
    recipe = replace(find_recipe("digits"), backbone="small_resnet", width=4, precision="float32", batch_size=32)
    images = ImageSet(torch.zeros(40, 1, 16, 16, dtype=torch.uint8))
    method = build_method(recipe, images).to(memory_format=torch.channels_last)
    for _ in range(30):
        method.student(torch.rand(32, 1, 16, 16)).sum().backward()
    strides = [m.stride for m in method.student.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (1, 1)]
    assert strides[0] == (1, 1) and (2, 2) in strides  # of 4 channels, and of 8 or more


def test_tiny_images_of_many_channels_are_not_taken_for_turned_ones() -> None:
    assert len(ImageSet(torch.zeros(8, 16, 3, 3, dtype=torch.uint8))) == 8
    assert "channels last" in refusal(ImageSet, torch.zeros(8, 16, 16, 3, dtype=torch.uint8))
