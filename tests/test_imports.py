"""What a GPU server imports, and what it must not need."""
import subprocess
import sys

import pytest

ROOMS = ("data", "views", "encoders", "queue", "loss", "teacher", "isd", "method", "training", "evaluation",
         "errors", "recipe", "kernels.nearest_neighbours", "engine.training")


@pytest.mark.parametrize("room", ROOMS)
def test_light_imports(room: str) -> None:
    heavy = ["matplotlib", "umap", "IPython", "ipywidgets", "anywidget", "jupyterlab", "nbdev", "sklearn", "accelerate"]
    code = f"import sys, isd_nb.{room}; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
