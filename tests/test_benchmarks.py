"""The benchmarks' scripts at toy size: that they run and save what the page on benchmarks reads, not their speed."""
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SMALL = ["--batch", "32", "--images", "64", "--anchors", "256", "--steps", "1"]


def run(script, target, *options):
    command = [sys.executable, FOLDER / f"{script}.py", "--json", target, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(target.read_text()), done.stdout


def test_step(tmp_path):
    found, printed = run("step", tmp_path / "step.json", *SMALL, "--workers", "1", "--repeats", "1", "--blur")
    names = {"ours", "ours in 2 processes", "plain"} | ({"lightly"} if find_spec("lightly") else set())
    assert set(found["results"]) == names and found["blur"]
    assert found["results"]["plain"]["images_per_second"] > 0
    assert all(len(row["ratios"]["ours"]) == 1 for row in found["results"].values())
    assert "plain" in printed.splitlines()[-1 - ("lightly" in names)]


def test_a_contestant_that_ends_is_named(tmp_path):
    command = [sys.executable, FOLDER / "step.py", *SMALL, "--network", "tinny", "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode and "the process of 'ours' ended" in done.stderr and "known: " in done.stderr


def test_parts(tmp_path):
    found, _ = run("parts", tmp_path / "parts.json", *SMALL, "--matrix", "64")
    rows = found["rows"]
    assert all(row["milliseconds"] >= 0 for row in rows.values()) and rows["the rest"]["gigaoperations"] == 0
    # two networks forward and one backward, 3 x 3 at every place: the first layer's images need no gradient
    layers = [(3, 16, 32), (16, 32, 16), (32, 64, 8), (64, 128, 4), (128, 128, 4)]
    forward = [2 * 9 * inputs * outputs * size**2 * 32 for inputs, outputs, size in layers]
    assert rows["convolutions"]["gigaoperations"] == pytest.approx((4 * sum(forward) - forward[0]) / 1e9, abs=0.01)
