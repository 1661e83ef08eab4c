"""`isd_explore` as a user runs it, on a folder without labels, and what must be in the package for it."""
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from isd_nb.cli.explore import isd_explore as command
from isd_nb.explore import explorer, gallery
from isd_nb.sources.door import load_images
from isd_nb.engine.training import train
from isd_nb.recipe import Recipe


@pytest.fixture
def isd_explore(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    "Runs the command in this process, with random layouts: UMAP takes half a minute to start and has its own chapter."
    def scatter(features: Tensor, start: np.ndarray | None = None) -> np.ndarray:
        return np.random.default_rng(0).random((len(features), 2), dtype=np.float32)

    def run(*arguments: str | Path) -> int:
        monkeypatch.setattr("sys.argv", ["isd_explore", *map(str, arguments)])
        monkeypatch.setattr(gallery, "layout", scatter)
        with pytest.raises(SystemExit) as ended:
            command()
        return ended.value.code or 0
    return run


def test_a_run_without_labels_becomes_one_file(isd_explore: Callable, make_folder: Callable, tmp_path: Path) -> None:
    folder, run = make_folder("it's <b>", {"": 40}), tmp_path / "<run>"
    recipe = Recipe("tiny", data=f"folder:{folder}", batch_size=16, queue_size=32, width=4, steps=4, evaluations=2)
    train(recipe, load_images(recipe.data, 16)[0], run, device="cpu", show=False)
    assert isd_explore(run, "--html", tmp_path / "x.html", "--moments", "2") == 0
    text = (tmp_path / "x.html").read_text()
    assert "no labels" in text and "http-equiv" in text and "<title>&lt;run&gt;</title>" in text
    key = run / "explorer" / "key.json"
    written = key.stat().st_mtime_ns
    assert isd_explore(run, "--no-open", "--moments", "2") == 0  # a notebook; from the cache
    assert key.stat().st_mtime_ns == written
    assert "Explorer.from_run(" in json.loads((run / "explorer.ipynb").read_text())["cells"][1]["source"]
    assert isd_explore(run, "--no-open", "--moments", "1") == 0  # other settings: computed again
    assert key.stat().st_mtime_ns != written


def test_mistakes_end_in_one_sentence(isd_explore: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert isd_explore(tmp_path / "nowhere", "--html", tmp_path / "x.html") == 2
    assert "no config.json" in capsys.readouterr().err


def test_the_page_is_in_the_package() -> None:
    assert "export default" in explorer.page("explorer.js") and ".isd-explorer" in explorer.page("explorer.css")
