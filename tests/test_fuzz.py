"""A little of tests/fuzz.py: some inputs of every kind, and one fault put in on purpose."""
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz import KINDS, PLANTED, Case, fuzz, main, planted, prepare
from isd_nb.kernels.devices import machine


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "What the inputs are made from."
    prepare(place := tmp_path_factory.mktemp("fuzz") / "made")
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_found(kind: Callable[..., Case], made: Path) -> None:
    assert fuzz(3, 1, kind, made=made)["found"] == []


def test_a_fault_that_was_put_in_is_found(made: Path) -> None:
    found = planted(1, 8, made=made)["found"]
    assert found and all("SyntaxError" in fault["fault"] for fault in found)
    assert {kind for *_, kind in PLANTED.values()} <= set(KINDS)


def test_a_fuzz_run_keeps_its_command_and_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = dict(inputs=1, seconds=0.0, ends={}, found=["none"])
    monkeypatch.setattr("fuzz.fuzz", lambda *given, **more: dict(nothing, found=[]))
    monkeypatch.setattr("fuzz.planted", lambda *given, **more: nothing)
    monkeypatch.setattr("sys.argv", ["tests/fuzz.py", "--count", "1", "--out", str(tmp_path / "fuzz.json")])
    assert main() == 0
    saved = json.loads((tmp_path / "fuzz.json").read_text())
    assert saved["command"].startswith("python tests/fuzz.py --count 1") and saved["machine"] == machine()
