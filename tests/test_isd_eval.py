"""`isd_eval` as a user meets it: after a small run, every protocol, and one sentence for every mistake."""
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import TINY, call
from launching import run_forked
from isd_nb.cli.compare import isd_compare
from isd_nb.cli.train import isd_train
from isd_nb.cli.evaluate import isd_eval as eval_command
from isd_nb.errors import InputError

QUICK = ("--epochs", "1", "--min-steps", "10", "--device", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("eval")
    quick = ("--no-figures", "--no-supervised", "--processes", "1", *TINY)
    assert call(isd_train, place, "--out", "run", *quick).returncode == 0
    return place / "run"


@pytest.fixture
def isd_eval(run: Path) -> Callable[..., subprocess.CompletedProcess]:
    return lambda *arguments: call(eval_command, run.parent, *arguments)


def sentence(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 2, result.stderr + result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("isd_eval:")]
    assert len(lines) == 1 and "Traceback" not in result.stderr + result.stdout, result.stderr
    return lines[0]


def test_neighbours_are_those_of_isd_train(isd_eval, run: Path) -> None:
    result = isd_eval("run", "--baselines", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    saved, summary = json.loads((run / "eval/knn.json").read_text()), json.loads((run / "summary.json").read_text())
    names = {"teacher": "teacher", "student": "student", "untrained net": "untrained", "raw pixels": "pixels"}
    assert [row["encoder"] for row in saved["rows"]] == list(names)
    for row in saved["rows"]:
        assert (row["nn"], row["20-nn"]) == tuple(summary[f"knn{k}_{names[row['encoder']]}"] for k in (1, 20))
        assert f"{row['20-nn']:.3f}" in result.stdout
    assert {"question", "machine", "version", "command"} <= set(saved) and saved["command"].startswith("isd_eval")


def test_the_saved_command_is_one_that_a_shell_reads(isd_eval, run: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    "A place with a blank in its name stays one argument."
    seen: list[str] = []

    def noted(*given: object) -> list:
        seen.extend(text for text in given if isinstance(text, str) and text.startswith("isd_"))
        raise InputError("that was all")
    monkeypatch.setattr("isd_nb.cli.evaluate.evaluate_run_by", noted)
    monkeypatch.setattr("isd_nb.cli.compare.compare", noted)
    isd_eval("run", "--root", "my data")
    call(isd_compare, tmp_path, "--methods", "isd", "--root", "my data")
    assert [shlex.split(text)[-2:] for text in seen] == [["--root", "my data"]] * 2


def test_processes_share_the_images(isd_eval, run: Path) -> None:
    asked = ("run", "--protocol", "transfer", "--data", "digits", "--baselines", "--threads", "1", *QUICK)
    alone = isd_eval(*asked)
    assert alone.returncode == 0, alone.stderr
    file = run / "eval" / "transfer.json"
    expected = json.loads(file.read_text())["rows"]
    file.unlink()
    command = [sys.executable, "-c", "from isd_nb.cli.evaluate import isd_eval; isd_eval()", *asked, "--processes", "2"]
    together = run_forked(command, cwd=run.parent, deep=True)
    assert together.returncode == 0, together.stderr
    assert together.stdout == alone.stdout
    whole = json.loads(file.read_text())
    assert whole["rows"] == expected
    marked = whole | {"rows": [row | {"nn": -1.0} for row in expected]}
    file.write_text(json.dumps(marked))
    again = isd_eval(*asked, "--processes", "2")
    assert again.returncode == 0, again.stderr
    assert json.loads(file.read_text())["rows"] == marked["rows"], "finished rows are not computed again"


def test_what_trains_is_not_shared(isd_eval) -> None:
    two = ("run", "--processes", "2")
    assert "--protocol finetune trains in one process" in sentence(isd_eval(*two, "--protocol", "finetune"))
    assert "--augment trains in one process" in sentence(isd_eval(*two, "--protocol", "linear", "--augment"))
    assert "did you mean 'finetune'" in sentence(isd_eval(*two, "--protocol", "knn,finetuned"))


def test_what_trains_is_not_shared_under_torchrun(isd_eval, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert "start it without torchrun" in sentence(isd_eval("run", "--protocol", "finetune"))


@pytest.mark.parametrize("protocol", ["linear", "few-labels", "finetune"])
def test_protocols(isd_eval, run: Path, protocol: str) -> None:
    more = ("--augment",) if protocol == "linear" else ("--seeds", "2", "--fractions", "0.01")
    result = isd_eval("run", "--protocol", protocol, "--encoder", "teacher", *more, *QUICK)
    assert result.returncode == 0, result.stderr
    path = run / "eval" / f"{protocol}.json"
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == (1 if protocol == "linear" else 2)
    assert all(row["encoder"] == "teacher" and 0 <= row["top1"] <= row["top5"] <= 1 for row in rows)
    assert all(row["top5"] > 0.5 for row in rows), "chance is 0.5"
    assert not [p for p in (run / "eval").iterdir() if p.is_dir()], "checkpoints of finished rows stay"
    stamp = path.stat().st_mtime_ns
    assert isd_eval("run", "--protocol", protocol, "--encoder", "teacher", *more, *QUICK).returncode == 0
    assert path.stat().st_mtime_ns == stamp, "finished rows were computed again"


def test_a_lost_row_is_computed_again_and_equal(isd_eval, run: Path) -> None:
    ask = ("run", "--protocol", "few-labels", "--encoder", "student", "--seeds", "2", "--fractions", "0.05", *QUICK)
    assert isd_eval(*ask).returncode == 0
    path = run / "eval/few-labels.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "rows": whole["rows"][:-1]}))  # as if the command had been stopped
    assert isd_eval(*ask).returncode == 0
    assert json.loads(path.read_text())["rows"] == whole["rows"]


def test_transfer(isd_eval, run: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for label, level in (("dark", 40), ("light", 200)):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):  # colour images; the run was trained on grey ones
                pixels = rng.integers(level - 30, level + 30, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / label / f"{i}.png")
    result = isd_eval("run", "--protocol", "transfer", "--data", f"folder:{tmp_path}", "--encoder", "student", *QUICK)
    assert result.returncode == 0, result.stderr
    (path,) = (run / "eval").glob("transfer-*.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert {"nn", "20-nn", "top1", "top5"} <= set(row) and row["nn"] > 0.9


def test_mistakes_are_one_sentence(isd_eval, run: Path, tmp_path: Path) -> None:
    assert "did you mean 'linear'" in sentence(isd_eval("run", "--protocol", "linaer"))
    assert "did you mean 'teacher'" in sentence(isd_eval("run", "--encoder", "teachr"))
    assert "it has no config.json; give the directory that isd_train names" in sentence(isd_eval(tmp_path))
    assert "name them with --data" in sentence(isd_eval("run", "--protocol", "transfer"))
    assert "unknown image set" in sentence(isd_eval("run", "--data", "digit"))
    assert "like 0.01,0.1" in sentence(isd_eval("run", "--protocol", "few-labels", "--fractions", "1%"))
    assert "fractions in (0, 1]" in sentence(isd_eval("run", "--protocol", "few-labels", "--fractions", "7"))


@pytest.mark.parametrize("wrong", ["prefix", "missing", "shape"])
def test_a_tensor_without_a_partner_is_named(isd_eval, run: Path, tmp_path: Path, wrong: str) -> None:
    "The authors' evaluation scored random weights when a prefix was left on every name."
    with safe_open(run / "encoder.safetensors", "pt") as file:
        tensors, header = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    victim = next(k for k in tensors if k.startswith("student.") and k.endswith("weight"))
    value = tensors.pop(victim)
    if wrong == "prefix":
        tensors[victim.replace("student.", "student.module.", 1)] = value
    elif wrong == "shape":
        tensors[victim] = value[:1].clone()
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    save_file(tensors, tmp_path / "encoder.safetensors", header)
    message = sentence(isd_eval(tmp_path, "--encoder", "student"))
    assert victim.removeprefix("student.") in message
