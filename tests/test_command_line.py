"""`isd_train` as a user meets it: good input gives a whole run, bad input one clear sentence."""
import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from conftest import TINY, call
from launching import QUICK, Forked, forking, run_forked
from isd_nb.cli.train import closing, isd_train as train_command
from isd_nb.encoders import load_encoder


def one_sentence(result) -> str:
    "The message of a failed command, which must be a single line without a stack trace."
    assert result.returncode not in (0, None), result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("isd_train:")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    return lines[0]


def test_a_whole_run(isd_train, tmp_path: Path) -> None:
    "On the digits, in a process of its own, with all figures."
    command = [sys.executable, "-m", "isd_nb.cli", "--out", "run", *TINY, "--processes", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", QUICK: "1"}
    result = run_forked(command, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} >= {"config.json", "metrics.csv", "summary.json", "checkpoints", "figures",
                                               "encoder.safetensors"}
    assert {p.name for p in (run / "figures").iterdir()} == {"curves.png", "neighbours.png", "umap.png"}
    summary = json.loads((run / "summary.json").read_text())
    assert {"knn1_teacher", "knn1_student", "knn20_teacher", "knn20_student", "knn20_untrained", "knn20_pixels",
            "images_per_second", "seconds", "images_seen"} <= set(summary)
    assert summary["images_seen"] == 12 * 16
    assert summary["command"] == shlex.join(["isd_train", *command[3:]])  # of `python -m isd_nb.cli`
    assert "trained with labels" in result.stdout and "Next:" in result.stdout
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [int(r["step"]) for r in rows] == list(range(13))
    assert sum(bool(r["knn20_teacher"]) for r in rows) == 4  # before training and three times during it
    features = load_encoder(run)(torch.rand(3, 1, 16, 16))
    assert features.shape == (3, 32) and not features.requires_grad

    again = isd_train("--out", "run")
    assert "run exists already; go on with it by resume=True (--resume)" in one_sentence(again)
    resumed = isd_train("--out", "run", "--resume", "--no-figures")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((run / "summary.json").read_text())["knn20_teacher"] == summary["knn20_teacher"]
    changed = isd_train("--out", "run", "--resume", "--seed", "1")
    assert "changed from seed 0 to 1" in one_sentence(changed)
    other = isd_train("--out", "run", "--resume", "--recipe", "cifar10_small")
    assert "was begun with the recipe digits" in one_sentence(other)

    holding = "import sys; from pathlib import Path; from isd_nb.engine.runs import only_one\n" \
              "with only_one(Path('run')):\n    print('held', flush=True)\n    sys.stdin.read()"
    pipe = subprocess.PIPE
    holder = Forked([sys.executable, "-c", holding], cwd=tmp_path, stdin=pipe, stdout=pipe, text=True)
    assert holder.stdout.readline() == "held\n"
    assert "another process is training in run" in one_sentence(isd_train("--out", "run", "--resume"))
    holder.communicate()


def test_folders(isd_train, make_folder, tmp_path: Path) -> None:
    make_folder("split/train", {"a": 20, "ünïcode <b>$": 20})
    make_folder("split/val", {"a": 5, "ünïcode <b>$": 5})
    few = ("--no-figures", "--set", "backbone=tiny", "--set", "evaluations=1")
    result = isd_train("--data", "folder:split", "--out", "one", *few)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert (summary["images"], summary["test_images"]) == (40, 10)

    make_folder("classes", {"a": 20, "b": 20})
    result = isd_train("--data", "folder:classes", "--out", "two", "--no-supervised", *few)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["test_images"] == 8

    make_folder("alike", {"all": 30})
    result = isd_train("--data", "folder:alike", "--out", "same", *few)
    assert result.returncode == 0, result.stderr  # one class: nothing to learn with labels, and no reason to fail

    plain = make_folder("plain", {".": 30})
    result = isd_train("--data", f"folder:{plain}", "--out", "three", *few)
    assert result.returncode == 0, result.stderr
    assert "No labels, so no accuracy" in result.stdout
    assert not any(k.startswith("knn") for k in json.loads((tmp_path / "three" / "summary.json").read_text()))


def test_unreadable_images(isd_train, make_folder) -> None:
    few = make_folder("few", {"a": 30, "b": 30})
    (few / "a" / "broken.jpg").write_bytes(b"not an image")
    (few / "b" / "cut.png").write_bytes((few / "b" / "000.png").read_bytes()[:200])
    result = isd_train("--data", f"folder:{few}", "--no-figures", "--no-supervised", "--set", "backbone=tiny")
    assert result.returncode == 0, result.stderr
    assert "2 of 62 files" in result.stderr and "broken.jpg" in result.stderr and "cut.png" in result.stderr

    for i in range(4):
        (few / "a" / f"broken{i}.jpg").write_bytes(b"not an image")
    message = one_sentence(isd_train("--data", f"folder:{few}"))
    assert "6 of 66 files" in message and "More than 5%" in message


@pytest.mark.parametrize(("arguments", "message"), [
    (["--recipe", "digit"], "did you mean 'digits'?"),
    (["--method", "ids"], "did you mean 'isd'?"),
    (["--data", "torchvision:CIFAR11"], "did you mean 'CIFAR10'?"),
    (["--data", "digit"], "did you mean 'digits'?"),
    (["--data", "folder:nowhere"], "nowhere is not a folder"),
    (["--device", "gpu"], "unknown device 'gpu'"),
    (["--epochs", "2"], "either --epochs or --steps, not both"),
    (["--batch-size", "6000", "--set", "queue_size=6000"], "a batch of 6000 is larger than the set of 5188 images"),
    (["--set", "queue_size=8"], "a queue of 8 anchors is smaller than a batch"),
    (["--set", "student_temperature=0"], "student_temperature must be positive"),
    (["--set", "momentum=[0.9,1.2]"], "momentum goes from one number in [0, 1] to another, not (0.9, 1.2)"),
    (["--set", "momentum=[0.99]"], "momentum must be a number, or two"),
    (["--set", "projector=256"], "projector must be a list of whole numbers"),
    (["--set", "weight_decay=-1"], "weight_decay must be 0 or more"),
    (["--seed", "-1"], "seed must be 0 or more, not -1"),
    (["--method", "compress", "--set", 'options={"guide": "runs/typo"}'], "guide of compress cannot be loaded"),
    (["--method", "compress", "--set", 'options={"guide": 3}'], "guide of compress cannot be loaded"),
    (["--set", "tempo=3"], "--set takes name=value"),
    (["--set", "backbone=resnet19"], "did you mean 'resnet18'"),
    (["--set", "learning_rate=fast"], 'learning_rate must be a number, not "fast"'),
    (["--resume"], "there is no run of digits-isd"),
])
def test_bad_input(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A non-zero exit and one sentence, no exception."
    monkeypatch.setattr("isd_nb.engine.launch.subprocess", forking())
    how = ("--steps", "12", "--device", "cpu", *arguments)
    alone = () if "folder:nowhere" in arguments else ("--processes", "1")  # that one is refused in all processes
    assert message in one_sentence(call(train_command, tmp_path, *how, *alone))


def test_empty_and_small_folders(isd_train, make_folder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no image in empty" in one_sentence(isd_train("--data", "folder:empty"))
    make_folder("single", {".": 1})
    assert "takes at least 2" in one_sentence(isd_train("--data", "folder:single"))


def test_a_loss_that_is_not_finite(isd_train, tmp_path: Path) -> None:
    message = one_sentence(isd_train("--set", "learning_rate=1e30", "--set", "precision=float32", "--out", "run"))
    assert "not finite at step" in message and "learning rate" in message and "temperatures" in message
    assert not list((tmp_path / "run" / "checkpoints").glob("state_*.pt"))  # ruined weights are not kept


def test_without_a_network(isd_train, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*given: object, **how: object) -> None:
        raise URLError("no network")
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    message = one_sentence(isd_train("--data", "torchvision:KMNIST", "--root", "nothing_here"))
    assert "KMNIST" in message and "could not be downloaded" in message


def test_the_last_words_name_figures_that_are_there() -> None:
    numbers = dict(images_seen=8, seconds=1.0, images_per_second=8.0)
    said = [closing(numbers, Path("run"), files, ["teacher"]) for files in ((), (Path("run/figures/curves.png"),))]
    assert ["look at the figures" in text for text in said] == [False, True] and "Next: load the encoder" in said[0]
