"""What a GPU server imports, and what it must not need."""
import subprocess
import sys

ROOMS = ("data", "views", "encoders", "queue", "loss", "teacher", "isd", "method", "training", "evaluation",
         "errors", "recipe", "kernels.nearest_neighbours", "engine.training")


def test_light_imports() -> None:
    "In one process, which takes seconds to import torch; the first room that imports something heavy is named."
    heavy = ["matplotlib", "umap", "IPython", "ipywidgets", "anywidget", "jupyterlab", "nbdev", "sklearn", "accelerate"]
    code = f"""
import importlib, sys
for room in {ROOMS!r}:
    importlib.import_module("isd_nb." + room)
    if found := [name for name in {heavy!r} if name in sys.modules]:
        sys.exit(f"isd_nb.{{room}} imports {{', '.join(found)}}")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
