"""`isd_explore` as a user runs it, on a folder without labels, and what must be in the package for it."""
import ast
import csv
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from isd_nb.cli.explore import isd_explore as command
from isd_nb.cli.pack import pack
from isd_nb.data import ImageSet
from isd_nb.errors import InputError, refusal
from isd_nb.explore import explorer, gallery
from isd_nb.explore.given import gallery_of_sources
from isd_nb.explore.umap_map import exact_neighbours, keep_compiled, layout
from isd_nb.sources.door import load_images
from isd_nb.engine.training import train
from isd_nb.recipe import Recipe


def scatter(features: Tensor, start: np.ndarray | None = None) -> np.ndarray:
    return np.random.default_rng(0).random((len(features), 2), dtype=np.float32)


@pytest.fixture
def isd_explore(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    "Runs the command in this process, with random layouts: UMAP takes half a minute to start and has its own chapter."
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


@pytest.fixture
def colour_run(make_folder: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "A run on a folder of colour images that is named as the README does: from where one stands."
    make_folder("colour", {"a": 12, "b": 12})
    monkeypatch.chdir(tmp_path)
    recipe = Recipe("tiny", data="folder:colour", batch_size=8, queue_size=16, width=4, steps=2, evaluations=1)
    train(recipe, load_images(recipe.data, 16)[0], tmp_path / "run", device="cpu", show=False)
    return tmp_path / "run"


def explorer_call(run: Path) -> dict[str, object]:
    "The arguments with which the notebook of a run makes its explorer."
    source = json.loads((run / "explorer.ipynb").read_text())["cells"][1]["source"]
    call = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {"run": ast.literal_eval(call.args[0])} | {k.arg: ast.literal_eval(k.value) for k in call.keywords}


def test_the_notebook_names_places_from_anywhere(isd_explore: Callable, colour_run: Path, make_folder: Callable,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    here = colour_run.parent
    assert isd_explore("run", "--no-open", "--moments", "1", "--limit", "20", "--root", "sets") == 0
    wanted = dict(run=str(colour_run), limit=20, moments=1, data=f"folder:{here / 'colour'}", root=str(here / "sets"))
    assert explorer_call(colour_run) == wanted
    make_folder("other", {"c": 20, "d": 20})
    assert isd_explore("run", "--no-open", "--data", "folder:other") == 0
    assert explorer_call(colour_run)["data"] == f"folder:{here / 'other'}"
    monkeypatch.chdir(colour_run)  # where Jupyter starts the kernel
    settings = explorer_call(colour_run)
    assert len(gallery.gallery_of_run(settings.pop("run"), show=False, **settings).images) == 8  # a fifth, held out


def test_archives_and_packed_sets_are_explored(isd_explore: Callable, colour_run: Path, tmp_path: Path) -> None:
    with ZipFile("set.zip", "w") as archive:
        for path in sorted(Path("colour").rglob("*.png")):
            archive.write(path, path.relative_to("colour"))
    pack("folder:colour", "packed", 16)
    for data in ("folder:set.zip", "packed:packed"):
        assert isd_explore(colour_run, "--data", data, "--html", "x.html", "--moments", "1") == 0
        paths = gallery.run_images(Recipe("x", image_size=16, data=data), None, "data", 9).paths
        names = [f"{path.parent.name}/{path.name}" for path in paths]
        assert json.dumps(names) in Path("x.html").read_text()
    files, on_disk = gallery.run_files(colour_run, 1), load_images("folder:set.zip", 16, memory=0)[1]
    before = gallery.digest(colour_run, files, on_disk)
    assert before == gallery.digest(colour_run, files, load_images("folder:set.zip", 16, memory=0)[1])
    os.utime("set.zip", (1, 1))
    assert before != gallery.digest(colour_run, files, on_disk)


def test_a_kept_picture_names_the_classes_of_now(colour_run: Path, tmp_path: Path) -> None:
    images, files = load_images("folder:colour", 16)[1], gallery.run_files(colour_run, 1)
    renamed = replace(images, classes=("one", "other"))
    assert gallery.digest(colour_run, files, images) != gallery.digest(colour_run, files, renamed)


def test_images_of_other_channels_are_converted(isd_explore: Callable, colour_run: Path, tmp_path: Path) -> None:
    (tmp_path / "grey" / "a").mkdir(parents=True)
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (24, 20, 20), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / f"grey/a/{i}.png")
    assert isd_explore(colour_run, "--data", "folder:grey", "--html", tmp_path / "x.html", "--moments", "1") == 0
    assert gallery.run_images(Recipe("x", image_size=16, data="folder:grey"), None, "data", 9, 3).shape == (3, 16, 16)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_need_not_be_utf8(isd_explore: Callable, colour_run: Path, tmp_path: Path) -> None:
    os.rename(b"colour/b", b"colour/caf\xe9")
    os.rename(b"colour/a/000.png", b"colour/a/\xff.png")
    assert isd_explore(colour_run, "--html", tmp_path / "x.html", "--moments", "1") == 0
    assert "caf" in (tmp_path / "x.html").read_text()


def test_mistakes_end_in_one_sentence(isd_explore: Callable, colour_run: Path, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def refused(*arguments: str | Path) -> str:
        assert isd_explore(*arguments) == 2
        return capsys.readouterr().err

    assert "no config.json" in refused(tmp_path / "nowhere", "--html", tmp_path / "x.html")
    (tmp_path / "notes.html").write_text("<p>mine</p>")
    assert "is no page of the explorer" in refused(colour_run, "--html", tmp_path / "notes.html")
    assert f"{tmp_path / 'explorer.html'}" in refused(colour_run, "--html", tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "umap", None)
        patch.setattr(gallery, "layout", layout)
        assert "the map needs umap-learn" in refusal(gallery.gallery_of_run, colour_run, moments=1, show=False)
    with monkeypatch.context() as patch:
        patch.setattr("isd_nb.cli.explore.find_spec", lambda name: None)
        assert "--html FILE needs no JupyterLab" in refused(colour_run)
    for file in (colour_run / "checkpoints").glob("encoder_*.safetensors"):
        file.write_bytes(file.read_bytes()[:999])
    assert "is not a whole safetensors file" in refused(colour_run, "--html", tmp_path / "x.html")


def test_the_page_is_in_the_package() -> None:
    assert "export default" in explorer.page("explorer.js") and ".isd-explorer" in explorer.page("explorer.css")
    assert "contourOf" in explorer.page("contours.js")


def test_a_missing_library_is_named_before_features_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isd_nb.explore.umap_map.find_spec", lambda name: None)
    monkeypatch.setattr("isd_nb.explore.given.features_and_images", lambda *given: pytest.fail("features are computed"))
    with pytest.raises(InputError, match="the map needs umap-learn"):
        gallery_of_sources(["shipped:digits"], "digits")


def test_the_tables_of_a_run(isd_explore: Callable, colour_run: Path, make_folder: Callable,
                             capsys: pytest.CaptureFixture) -> None:
    "Of the images that are tested on, a fifth of 24 or of 40; with `--limit`, of fewer."
    (file,) = colour_run.glob("checkpoints/encoder_00000002.safetensors")
    shutil.copy(file, colour_run / "encoder.safetensors")
    make_folder("other", {"c": 20, "d": 20})
    other = ("--data", "folder:other")
    for more, count in (((), 4), (other, 8), ((*other, "--limit", "5"), 5)):
        assert isd_explore("run", "--report", "tables", *more) == 0
        said = capsys.readouterr().out
        assert all(f"tables/{name}.csv" in said for name in ("near_duplicates", "outliers", "suspect_labels"))
        assert len([*csv.DictReader(Path("tables/outliers.csv").read_text().splitlines())]) == count
    assert not (colour_run / "explorer.ipynb").exists() and not (colour_run / "explorer").exists()


def test_5000_images_are_explored_where_no_limit_is_given(isd_explore: Callable, colour_run: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr("isd_nb.cli.explore.report_of_sources", lambda *given, **how: limits.append(given[4]) or ["x"])
    monkeypatch.setattr(explorer.Explorer, "from_run", lambda run, **how: limits.append(how["limit"]))

    def noted(sources: object, data: str, size: int | None, limit: int, *rest: object) -> None:
        limits.append(limit)
        raise InputError("that was all")
    monkeypatch.setattr("isd_nb.cli.explore.gallery_of_sources", noted)
    weights = ("--encoder", "shipped:digits", "--data", "digits", "--html", "x.html")
    for more, expected in (((), 5000), (("--limit", "7"), 7)):
        ended = [isd_explore(*words, *more) for words in (("run", "--report", "x"), ("run", "--no-open"), weights)]
        assert ended == [0, 0, 2] and limits == [expected] * 3
        assert explorer_call(colour_run)["limit"] == expected
        limits.clear()


def test_the_code_of_the_page_about_any_network_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parent.parent / "book/pages/explore_any_network.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gallery, "layout", scatter)
    exec(code, {"images": ImageSet(torch.zeros(12, 1, 8, 8).byte()), "features": torch.randn(12, 5)})
    assert "my network" in Path("explorer.html").read_text()


def test_neighbours_of_a_large_map_are_exact() -> None:
    features = torch.randn(4096, 3, generator=torch.Generator().manual_seed(0))
    rows, distances = exact_neighbours(features, 5)["precomputed_knn"]
    assert rows.shape == distances.shape == (4096, 5) and (distances >= 0).all()
    assert (rows[:, 0] == np.arange(4096)).all()
    unit = torch.nn.functional.normalize(features, dim=1)
    expected = (1 - unit[::512] @ unit.T).sort(dim=1).values[:, :5]
    np.testing.assert_allclose(distances[::512], expected, atol=1e-6)
    own = torch.einsum("nf,nkf->nk", unit[::512], unit[torch.from_numpy(rows[::512])])
    np.testing.assert_allclose(distances[::512], 1 - own, atol=1e-6)
    assert exact_neighbours(features[:4095], 5) == {}, "UMAP's own search is exact there"


def test_what_numba_compiles_is_kept_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caching = pytest.importorskip("numba.core.caching")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("kept_here", "left_alone"):
        (tmp_path / f"{name}.py").write_text("import numba\n\n@numba.njit\ndef double(x):\n    return 2 * x\n")
    kept, other = (importlib.import_module(name).double for name in ("kept_here", "left_alone"))
    assert isinstance(kept._cache, caching.NullCache)
    for _ in range(2):  # a second call changes nothing
        keep_compiled("kept_here")
        assert isinstance(kept._cache, caching.FunctionCache) and isinstance(other._cache, caching.NullCache)
    assert kept(2) == 4 and [*tmp_path.glob("__pycache__/kept_here.double-*.nbi")]
    assert not [*tmp_path.glob("__pycache__/left_alone.double-*")]
