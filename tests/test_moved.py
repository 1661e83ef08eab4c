"""Old names still lead to what has moved, with a warning, and load nothing twice."""
import importlib
import os
import sys
from pathlib import Path

import pytest
from launching import run_forked
from PIL import Image

from isd_nb._moved import MOVED, NAMES


@pytest.mark.filterwarnings("ignore:.*has moved")
@pytest.mark.parametrize("name", ["atlas", "gallery", "baselines", "baselines.byol", "recipes", "cli_eval"])
def test_an_old_module_is_the_one_of_today(name: str) -> None:
    assert importlib.import_module(f"isd_nb.{name}") is importlib.import_module(f"isd_nb.{MOVED[name]}")


@pytest.mark.parametrize("name", NAMES)
def test_an_old_name_is_the_one_of_today(name: str) -> None:
    module, _, function = name.rpartition(".")
    with pytest.warns(FutureWarning, match="has moved"):
        old = getattr(importlib.import_module(f"isd_nb.{module}"), function)
    place, _, today = NAMES[name].rpartition(".")
    assert old is getattr(importlib.import_module(f"isd_nb.{place}"), today)


def test_a_pipe_and_a_bomb_among_images_cost_no_time(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")  # opening it would wait for ever
    sides = (200_000).to_bytes(4, "big") * 2
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + sides + b"\x08\x02\0\0\0" + bytes(4))
    Image.new("RGB", (9, 7)).save(tmp_path / "c.png")
    code = "import sys; from isd_nb.sources.datasets import typical_side; print(typical_side(sys.argv[1]))"
    command = [sys.executable, "-c", code, f"folder:{tmp_path}"]
    said = run_forked(command, timeout=120)
    assert said.stdout == "7\n", said.stderr


def test_an_old_module_still_runs_as_a_command() -> None:
    said = run_forked([sys.executable, "-m", "isd_nb.claims.few_labels", "--help"])
    assert said.returncode == 0 and "--budgets" in said.stdout, said.stderr
