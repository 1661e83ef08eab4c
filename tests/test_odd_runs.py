"""Out of the ordinary: labels on one side only, two commands on one file, plans of any recipe, images of any size."""
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import SMALL, TINY, call
from launching import Forked
from isd_nb.cli.train import isd_train as train_command
from isd_nb.methods.building import read_sets
from isd_nb.engine.estimate import part_rates
from isd_nb.engine.evaluate_run import evaluate_run
from isd_nb.studies.compare import read_settings
from isd_nb.data import ImageSet
from isd_nb.errors import InputError
from isd_nb.engine.finish import finish, score_table
from isd_nb.explore import neighbours
from isd_nb.explore.figures import draw, draw_figures, save_figure, train_or_go_on
from isd_nb.explore.gallery import run_images
from isd_nb.explore.gpu_notebooks import toy_folder
from isd_nb.protocols.answers import ResultCache, table_of
from isd_nb.protocols.scorer import sample_evaluator
from isd_nb.sources.door import Sets
from isd_nb.recipe import find_recipe
from isd_nb.protocols.storage import write_json

QUICK = replace(find_recipe("digits"), steps=4, batch_size=16, queue_size=32, width=4, projector=(8,), predictor=(6,),
                evaluations=2, precision="float32")


@pytest.fixture
def half_labelled(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    "Forty images without classes to train on, and two classes to test on."
    make_folder("half/val", {"a": 10, "b": 10})
    make_folder("half", {"train": 40})
    return tmp_path / "half"


def test_training_images_without_labels_beside_a_labelled_test_set(half_labelled: Path, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isd_nb.explore.umap_map.layout", lambda features: features[:, :2])
    data = ("--recipe", "digits", "--data", "folder:half")
    result = call(train_command, tmp_path, *data, "--out", "run", "--processes", "1", *TINY)
    assert result.returncode == 0, result.stderr
    assert "No labels, so no accuracy" in result.stdout
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["images_seen"] == 12 * 16 and not [name for name in summary if name.startswith(("knn", "linear"))]
    assert (tmp_path / "run/figures/neighbours.png").is_file() and (tmp_path / "run/encoder.safetensors").is_file()


@pytest.mark.parametrize("with_test", [True, False])
def test_a_notebook_for_gpus_without_labels(half_labelled: Path, tmp_path: Path, with_test: bool) -> None:
    recipe = replace(QUICK, data=f"folder:{half_labelled}")
    sets = read_sets(recipe)
    assert sets.bank.labels is None and sets.test.labels is not None
    sets = sets if with_test else replace(sets, test=None)
    assert sample_evaluator(sets.bank, sets.test) is None
    trained = train_or_go_on(recipe, sets, tmp_path / "run")
    finished = finish(recipe, sets, trained, tmp_path / "run")
    assert score_table(finished.summary) == "No labels, so no accuracy."
    assert set(finished.bank) == {"student", "teacher"} and bool(finished.test) == with_test
    draw(recipe, sets, finished, tmp_path / "run", points=10, quick=True)
    assert (tmp_path / "run/figures/map.png").is_file()


WRITER = """
import sys
from isd_nb.protocols.answers import ResultCache
ledger = ResultCache(sys.argv[1], {"power": 2})
print("begun", flush=True)
sys.stdin.readline()
for i in range(40):
    ledger.row({"who": sys.argv[2], "i": i}, lambda: {"y": i * i})
"""


def test_two_commands_fill_one_file_side_by_side(tmp_path: Path) -> None:
    place = tmp_path / "eval" / "squares.json"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    both = [Forked([sys.executable, "-c", WRITER, place, who], **pipes) for who in ("teacher", "student")]
    assert [writer.stdout.readline() for writer in both] == ["begun\n"] * 2  # both have read the empty file
    for writer in both:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in both:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    rows = json.loads(place.read_text())["rows"]
    wanted = [(who, i) for who in ("student", "teacher") for i in range(40)]
    assert sorted((row["who"], row["i"]) for row in rows) == wanted
    assert sorted(p.name for p in place.parent.iterdir()) == [".lock", "squares.json"]


def test_two_commands_with_other_settings_keep_their_rows(tmp_path: Path) -> None:
    "Both begin before there is a file; each has its own in the end."
    both = [ResultCache(tmp_path / "linear.json", {"epochs": n, "weights": "a"}, {"epochs": n}) for n in (1, 2)]
    for seed in range(2):
        for cache in both:
            cache.row({"seed": seed}, lambda: {"top1": 0.5})
    files = sorted(tmp_path.glob("linear*.json"))
    kept = [json.loads(path.read_text()) for path in files]
    assert sorted((one["question"]["epochs"], len(one["rows"])) for one in kept) == [(1, 2), (2, 2)]
    assert sorted(cache.path for cache in both) == files


def test_a_small_share_of_labels_is_printed_as_it_is() -> None:
    shares = {0.001: "0.1%", 0.004: "0.4%", 0.125: "12.5%", 1: "100%"}
    table = table_of([dict(encoder="teacher", fraction=f, top1=0.5, top5=0.5, low=0.4, high=0.6) for f in shares])
    assert [line.split()[1] for line in table.splitlines()[1:]] == [*shares.values()]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "values.json"
    write_json(place, {"a": 1})
    with pytest.raises(TypeError):
        write_json(place, {"a": object()})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_json(place, {"a": 2})
    assert json.loads(place.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [place]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("odd")
    result = call(train_command, place, "--out", "run", "--no-figures", "--no-supervised", "--processes", "1", *TINY)
    assert result.returncode == 0, result.stderr
    return place / "run"


def test_more_draws_and_more_shares_keep_the_rows_that_are_there(run: Path) -> None:
    def ask(seeds: int, *fractions: float) -> list[dict]:
        settings = dict(seeds=seeds, fractions=fractions, epochs=1, min_steps=5)
        return evaluate_run(run, "few-labels", encoder="student", device="cpu", **settings)["rows"]

    def saved() -> list[dict]:
        return json.loads((run / "eval/few-labels.json").read_text())["rows"]
    first = ask(2, 0.05)
    marked = [row | {"top5": -1.0} for row in first]  # a row computed anew would not have this
    values = json.loads((run / "eval/few-labels.json").read_text())
    write_json(run / "eval/few-labels.json", values | {"rows": marked})
    assert ask(3, 0.05)[:2] == marked and len(saved()) == 3
    wider = ask(2, 0.05, 0.1)
    assert [(row["fraction"], row["seed"]) for row in wider] == [(0.05, 0), (0.05, 1), (0.1, 0), (0.1, 1)]
    assert wider[:2] == marked
    assert ask(1, 0.1) == wider[2:3], "only what was asked for is answered"
    assert len(saved()) == 5, "and what others asked for stays"
    kept = saved()
    other = dict(seeds=1, fractions=(0.05,), epochs=1, min_steps=6)  # another schedule is another question, and file
    found = evaluate_run(run, "few-labels", encoder="student", device="cpu", **other)
    assert len(found["rows"]) == 1 and found["rows"][0]["top5"] >= 0 and saved() == kept
    assert json.loads(Path(found["file"]).read_text())["rows"] == found["rows"]


@pytest.mark.parametrize("settings", [
    ("--method", "supervised"),
    ("--set", "image_size=37", "--set", "batch_norm_splits=2"),  # room for 47 images, which are not cut in two
    ("--set", "image_size=200", "--set", "batch_norm_splits=4"),  # room for one
])
def test_a_dry_run_measures_any_recipe(settings: tuple[str, ...], small: Path, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    moment = partial(part_rates, seconds=0.01)
    monkeypatch.setattr("isd_nb.cli.train.part_rates", moment)
    result = call(train_command, tmp_path, *SMALL, "--batch-size", "64", "--set", "width=4", *settings, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "measured here, on the CPU" in result.stdout


@pytest.fixture
def stl10(monkeypatch: pytest.MonkeyPatch) -> None:
    "STL-10 in small: 64 images, 32 of them with labels."
    pixels = torch.randint(0, 256, (64, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, classes = torch.arange(32) % 2, ("airplane", "bird")
    bank = ImageSet(pixels[:32], labels, classes)
    sets = Sets(ImageSet(pixels, None, classes), bank, bank)
    monkeypatch.setattr("isd_nb.sources.door.read_stl10", lambda root: sets)


def train_on_stl10(place: Path, *arguments: str):
    tiny = (*TINY[2:], "--set", "backbone=tiny", "--set", "evaluations=1", "--out", "run", "--no-figures",
            "--processes", "1")
    return call(train_command, place, "--recipe", "stl10", *tiny, *arguments)


def test_what_learns_from_labels_gets_the_labelled_images_of_stl10(stl10: None, tmp_path: Path) -> None:
    result = train_on_stl10(tmp_path, "--method", "supervised", "--epochs", "2")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["images"] == 32 and summary["images_seen"] == 2 * 32 and 0 <= summary["knn20_student"] <= 1
    sets = {method: read_sets(replace(find_recipe("stl10"), method=method)) for method in ("isd", "supervised")}
    assert {name: (len(s.train), len(s.bank)) for name, s in sets.items()} == {"isd": (64, 32), "supervised": (32, 32)}


def test_labels_teach_for_a_quarter_of_the_steps_of_isd(stl10: None, tmp_path: Path) -> None:
    result = train_on_stl10(tmp_path, "--epochs", "4")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["images"] == 64 and summary["images_seen"] == 4 * 64
    assert summary["images_seen_supervised"] == 64, "a quarter, also where only half of the images have labels"


@pytest.mark.parametrize(("settings", "words"), [
    (("--recipe", "digits", "--set", "stored_size=32"), "stored_size=32 is for folders of images; digits is read in"),
    (("--recipe", "imagenet", "--data", "torchvision:CIFAR10"), "--set stored_size=null"),
    (("--recipe", "stl10", "--set", "image_size=64"), "STL-10 is read in its own 96 pixels, not in 64"),
])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_size_that_is_not_read_is_refused(settings: tuple, words: str, dry: tuple, tmp_path: Path) -> None:
    result = call(train_command, tmp_path, *settings, *dry)
    assert result.returncode == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_size_that_is_not_read_is_refused_in_python_too() -> None:
    for recipe in (replace(find_recipe("digits"), stored_size=32), replace(find_recipe("stl10"), image_size=64)):
        with pytest.raises(InputError, match="is read in"):
            read_sets(recipe)
    assert len(read_sets(replace(find_recipe("digits"), stored_size=16)).test) == 500  # the size that they have anyway


def test_a_folder_at_home(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(small.parent))
    recipe = replace(QUICK, data="folder:~/small")
    assert len(read_sets(recipe).train) == 80
    sets = read_sets(replace(recipe, stored_size=24), tmp_path)
    assert (sets.train.shape[1:], sets.bank.shape[1:]) == ((24, 24), (16, 16))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    raw = toy_folder("tiny-imagenet-200")  # the test images in one folder, with a table
    monkeypatch.setenv("HOME", str(raw.parent))
    sets = read_sets(replace(recipe, data=f"folder:~/{raw.name}"), tmp_path)
    assert set(sets.test.labels.tolist()) == {0, 1, 2, 3}


def test_labels_too_are_learned_from_images_of_the_stored_size(small: Path, tmp_path: Path) -> None:
    for method in ("isd", "supervised"):
        sets = read_sets(replace(QUICK, data=f"folder:{small}", stored_size=24, method=method), tmp_path)
        assert (sets.train.shape[1:], sets.bank.shape[1:]) == ((24, 24), (16, 16)), method


def test_the_trials_in_the_repository_are_still_read() -> None:
    places = [*(Path(__file__).parent.parent / "results" / "compare").glob("*settings*.json")]
    assert places
    for place in places:
        assert all(trials for _, trials in read_settings(place).values())


def test_the_explorer_cuts_images_as_they_are_evaluated(small: Path, tmp_path: Path) -> None:
    recipe = replace(QUICK, data=f"folder:{small}", stored_size=19)
    shown, tested = run_images(recipe, None, tmp_path, 100), read_sets(recipe, tmp_path).test
    assert torch.equal(shown.images, tested.images) and shown.paths[:] == tested.paths[:]


@pytest.mark.parametrize("with_test", [True, False])
def test_no_query_is_its_own_neighbour(with_test: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Above 2,000 images without a test set, too; beside a test set nothing is left out, so a copy there is the first."
    import matplotlib.pyplot as plt

    sizes, drawn, plot = list[int](), list[Any](), neighbours.plot_neighbours
    pixels = torch.randint(256, (2_100, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels.byte())
    monkeypatch.setitem(sys.modules, "umap", ModuleType("umap"))
    monkeypatch.setattr("isd_nb.explore.figures.plot_curves", lambda *given: plt.figure())
    monkeypatch.setattr("isd_nb.explore.umap_map.layout", lambda features: sizes.append(len(features)))
    monkeypatch.setattr("isd_nb.explore.umap_map.plot_map", lambda *given: plt.figure())
    monkeypatch.setattr(neighbours, "plot_neighbours", lambda *a, **how: drawn.append(plot(*a, **how)) or drawn[0])
    trained = SimpleNamespace(method=SimpleNamespace(encoders=lambda: {"teacher": torch.nn.Flatten()}))
    draw_figures(tmp_path, QUICK, trained, images, images.subset(range(2_100)) if with_test else None, {})
    shown = [ax.images[0].get_array() for ax in drawn[0].axes]
    rows = [shown[start:start + 9] for start in range(0, len(shown), 9)]
    assert len(rows) == 8 and sizes == [2_000]
    assert [any((one == query).all() for one in others) for query, *others in rows] == [with_test] * 8


def test_a_figure_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    class Failing:
        def savefig(self, path: Path, **how: object) -> None:
            Path(path).write_bytes(b"half")
            raise MemoryError

    (place := tmp_path / "map.png").write_bytes(b"whole")
    with pytest.raises(MemoryError):
        save_figure(Failing(), place)
    assert place.read_bytes() == b"whole" and [*tmp_path.iterdir()] == [place]
