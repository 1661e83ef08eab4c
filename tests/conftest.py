"""What the tests share: commands run as a user would, and small image folders."""
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TINY = ["--steps", "12", "--batch-size", "16", "--set", "queue_size=32", "--set", "width=4", "--set", "evaluations=3",
        "--set", "projector=[8]", "--set", "predictor=[8]", "--device", "cpu"]


@pytest.fixture
def isd_train(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    "Runs `isd_train` in a new process and an empty directory."
    def run(*arguments: str | Path) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "isd_nb.cli", *map(str, arguments), *TINY, "--processes", "1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    return run


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    "Writes random images as `NAME/<class>/NN.png`."
    def make(name: str, classes: dict[str, int], size: int = 20) -> Path:
        rng = np.random.default_rng(0)
        for label, count in classes.items():
            folder = tmp_path / name / label
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size, size + i % 3, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:03}.png")
        return tmp_path / name
    return make
