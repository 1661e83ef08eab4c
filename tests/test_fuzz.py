"""A little of tests/fuzz.py: some inputs of every kind, and one fault put in on purpose."""
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz import KINDS, PLANTED, Case, fuzz, planted, prepare


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
