"""The benchmarks' scripts at toy size: that they run and save what the page on benchmarks reads, not their speed."""
import argparse
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from launching import forking, run_forked
from isd_nb.kernels.convolution import dense_pays, product_pays
from isd_nb.kernels.devices import has_bfloat16
from isd_nb.methods.building import build_method
from isd_nb.recipe import find_recipe
from isd_nb.sources.digits import digits

FOLDER = Path(__file__).parent.parent / "benchmarks"
SMALL = ["--batch", "32", "--images", "64", "--anchors", "256", "--steps", "1"]
ONCE = ["--workers", "1", "--repeats", "1", "--blur", "--processes", "1"]


def run(script, target, *options):
    command = [sys.executable, FOLDER / f"{script}.py", "--json", target, *options]
    done = run_forked(command)
    assert done.returncode == 0, done.stderr
    return json.loads(target.read_text()), done.stdout


def test_step(tmp_path, monkeypatch, capsys):
    "Contestants are forks."
    monkeypatch.syspath_prepend(str(FOLDER))
    step = importlib.import_module("step")
    monkeypatch.setattr(step, "subprocess", forking())
    monkeypatch.setattr("sys.argv", ["step.py", "--json", str(tmp_path / "step.json"), *SMALL, *ONCE])
    step.main()
    found, printed = json.loads((tmp_path / "step.json").read_text()), capsys.readouterr().out
    names = {"ours", "tuned", "plain"} | ({"lightly"} if find_spec("lightly") else set())
    assert set(found["results"]) == names and found["blur"]
    assert found["results"]["plain"]["images_per_second"] > 0
    assert all(len(row["ratios"]["ours"]) == 1 for row in found["results"].values())
    assert "plain" in printed.splitlines()[-1 - ("lightly" in names)]


@pytest.fixture
def race(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("race")


@pytest.mark.parametrize("name, method", [("ours", "isd"), ("tuned", "isd"), ("tuned", "moco_v2")])
def test_race(race, name, method, monkeypatch):
    (train, test), few = digits(), range(512)
    few = race.Sets(train.subset(few), train.subset(few), test.subset(range(200)))
    monkeypatch.setattr(race, "sets_of", lambda recipe: few)
    rows = race.run_one(name, race.race_recipe(method, "digits", 3, 0, None), every=2)
    assert [row["step"] for row in rows] == [0, 2, 3] and rows[2]["images"] == 3 * find_recipe("digits").batch_size
    assert 0 < rows[1]["seconds"] < rows[2]["seconds"] and 0.1 < rows[2]["knn20"] < 1


def test_views_made_during_an_evaluation_are_not_free(race, monkeypatch):
    "The clocks stand still then, and two workers are two batches ahead each: as many are dropped before the next step."
    done = []

    class Step:
        mean = std = teacher = (0,)
        optimizer = SimpleNamespace(param_groups=[])

        def __init__(self, *given):
            """Nothing is built."""

        def __call__(self, *views):
            done.append("step")

    class Loader:
        def __init__(self, *given, **how):
            """A batch is noted when it is taken."""

        def __iter__(self):
            while True:
                done.append("batch")
                yield []
    monkeypatch.setattr(race, "DataLoader", Loader)
    monkeypatch.setattr(race, "plain_views", lambda *given: None)
    monkeypatch.setattr(race, "evaluated", lambda *given: done.append("stop"))
    monkeypatch.setattr(race, "score_encoders", lambda *given, **how: {"teacher": {"knn20": 0.5}})
    monkeypatch.setitem(race.MAKERS, "plain", race.looped(Step))
    race.run_one("plain", race.race_recipe("isd", "digits", 3, 0, None), every=2)
    dropped = ["stop", *["batch"] * 4]
    assert done == ["batch", "step", *dropped, *["batch", "step"] * 2, *dropped, "batch", "step", *dropped]


def test_plain_contestants_train_the_same_network(race):
    recipe = race.race_recipe("isd", "digits", 1, 0, None)
    images = race.sets_of(recipe).train
    step, (training, _) = race.PlainRace(recipe, images), race.tuned_contestant(recipe, images)
    shapes = [[tuple(p.shape) for p in module.parameters()] for module in (step.student, training.step.student)]
    assert shapes[0] == shapes[1]
    pictures = race.TwoKinds(images.images[:32], (race.plain_views(recipe.views, 16, 1, step.mean, step.std),) * 2)
    views = [torch.stack(part) for part in zip(*(pictures[i] for i in range(32)))]
    before = step.queue.clone()
    step(*views)
    assert views[0].shape == (32, 1, 16, 16) and (step.queue != before).any(1).sum() == 32


def test_the_mark_of_a_race_is_one_that_all_reach(race):
    def curve(name, *scores, seed=0, pace=1.0):
        rows = [dict(seconds=pace * i, processor_seconds=2.0 * i, knn20=s) for i, s in enumerate([0.5, *scores])]
        return dict(method="isd", contestant=name, seed=seed, rows=rows)
    found = race.summary([curve("ours", 0.81, 0.96), curve("plain", 0.6, 0.7, 0.81)])["isd"]
    assert found["mark"] == 0.8 and found["seconds"] == dict(ours=1, plain=3)
    assert race.summary([curve("ours", 0.5)]) == {}  # no mark above the untrained net
    assert found["slower_than_ours"]["plain"] == 3 and found["processor_seconds"]["plain"] == 6
    # a ratio is the median of the seeds' ratios (4, 1 and 10), not that of the medians (10 / 2)
    runs = [curve("ours", 0.81, seed=s, pace=own) for s, own in enumerate((1, 10, 2))]
    runs += [curve("plain", 0.81, seed=s, pace=other) for s, other in enumerate((4, 10, 20))]
    assert race.summary(runs)["isd"]["slower_than_ours"]["plain"] == 4


def test_a_race_states_the_ratio_of_all_steps_beside_that_of_the_mark(race):
    "A mark is on the plateau, where one evaluation decides: here seed 1 of the other passes it two evaluations later."
    def run(name, pace, seed, *scores):
        rows = [dict(seconds=pace * i, processor_seconds=pace * i, knn20=s) for i, s in enumerate([0.5, *scores])]
        return dict(method="isd", contestant=name, seed=seed, rows=rows)
    runs = [run("ours", 1, seed, 0.81, 0.81, 0.81) for seed in range(2)]
    runs += [run("plain", 2, 0, 0.81, 0.81, 0.81), run("plain", 2, 1, 0.79, 0.79, 0.81)]
    found = race.summary(runs)["isd"]
    assert found["slower_by_seed"]["plain"] == {0: 2, 1: 6} and found["slower_than_ours"]["plain"] == 4
    assert found["slower_per_step_by_seed"]["plain"] == {0: 2, 1: 2} and found["slower_per_step"]["plain"] == 2


def test_a_saved_race_is_summed_up_as_now(race):
    saved = json.loads((FOLDER.parent / "results" / "bench" / "race.json").read_text())
    assert saved["summary"] == json.loads(json.dumps(race.summary(saved["runs"])))


def test_a_race_saved_without_ratios_per_step_is_read(race, tmp_path, monkeypatch):
    results = FOLDER.parent / "results"
    saved = json.loads((results / "bench" / "race.json").read_text())
    for row in saved["summary"].values():
        row.pop("slower_per_step", row.pop("slower_per_step_by_seed", None))
    (tmp_path / "bench").mkdir()
    for name in ("step", "step_blur", "views", "loss"):
        (tmp_path / "bench" / f"{name}.json").write_bytes((results / "bench" / f"{name}.json").read_bytes())
    (tmp_path / "bench" / "race.json").write_text(json.dumps(saved))
    assert "per step)" not in importlib.import_module("readme").speed(tmp_path)
    plot = importlib.import_module("plot")
    plot.race(saved)
    titles = [ax.get_title() for ax in plot.plt.gcf().axes]
    plot.plt.close("all")
    assert titles and not any("per step" in title for title in titles)


def test_a_race_is_not_mixed_with_one_of_other_settings(race, tmp_path):
    (tmp_path / "race.json").write_text(json.dumps(dict(steps=10, runs=[1])))
    assert race.earlier_runs(tmp_path / "race.json", dict(steps=10)) == [1]
    with pytest.raises(SystemExit, match="other settings"):
        race.earlier_runs(tmp_path / "race.json", dict(steps=20))


def test_a_race_begins_anew(race, tmp_path, monkeypatch):
    "Also beside a file of other settings, which stays until the race is complete; an unfinished one goes on."
    file = tmp_path / "race.json"
    file.write_text(before := json.dumps(dict(steps=10, runs=[1])))
    rows = [dict(seconds=1.0, processor_seconds=1.0, knn20=0.1), dict(seconds=2.0, processor_seconds=2.0, knn20=0.9)]
    seconds, ran = itertools.count(0, 3600), []
    monkeypatch.setattr(race.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(race, "one_run", lambda *given: ran.append(given[-1]) or rows)
    few = ["--methods", "isd", "--contestants", "ours", "--seeds", "2", "--minutes", "60"]
    monkeypatch.setattr("sys.argv", ["race.py", "--anew", *few, "--json", str(file)])
    with pytest.raises(SystemExit, match="60 minutes are over; the same command goes on"):
        race.main()
    assert ran == [0] and file.read_text() == before
    race.main()
    found = json.loads(file.read_text())
    assert ran == [run["seed"] for run in found["runs"]] == [0, 1] and "--anew" not in found["command"]
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("run")


def test_make_bench_repeats_the_saved_files(bench):
    def plain(words):  # without where the result is written, and without what only repeats a race
        places = {place + n for place, word in enumerate(words) if word in ("--json", "--out") for n in (0, 1)}
        return [word for place, word in enumerate(words) if place not in places and word != "--anew"]
    for path in (bench.ROOT / "results" / "bench").glob("*.json"):
        command = json.loads(path.read_text())["command"].removeprefix("python ")
        if path.stem == "equivalence":  # measured seed by seed, on one machine after the other
            parts = {part.partition(" --seeds")[0] for part in command.removeprefix("python ").split("; python ")}
            (command,) = parts
        assert plain(bench.command_of(path.stem, None)) == plain(command.split()), path.name


def test_what_the_benchmarks_page_names_can_be_measured(bench):
    page = json.loads((FOLDER.parent / "nbs" / "machine_room" / "86_benchmarks.ipynb").read_text())
    printed = "".join(t for c in page["cells"] for o in c.get("outputs", []) for t in o.get("text", []))
    assert set(re.findall(r"benchmarks/run\.py (\w+)", printed)) <= set(bench.COMMANDS)


def test_a_benchmark_that_fails_does_not_keep_the_others_from_running(bench, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(bench.subprocess, "run", lambda command, **how: ran.append(command[1:]) or SimpleNamespace(
        returncode=int(command[1] == "benchmarks/loss.py")))
    monkeypatch.setattr("sys.argv", ["run.py", "loss", "packed", "race"])
    with pytest.raises(SystemExit, match=r"not measured: loss, packed \(it needs --data\)"):
        bench.main()
    assert [command[0] for command in ran] == [f"benchmarks/{name}.py" for name in ("loss", "race", "plot")]
    assert "--anew" in ran[1] and "800" in ran[1]


def test_a_contestant_that_ends_is_named(monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(FOLDER))
    step = importlib.import_module("step")
    monkeypatch.setattr(step, "subprocess", forking())
    options = dict(network="tinny", device="cpu", batch=32, anchors=256, images=64, workers=1, steps=1, blur=False)
    with pytest.raises(SystemExit, match="the process of 'ours' ended"):
        step.start("ours", argparse.Namespace(**options))()
    assert "known: " in capfd.readouterr().err


def test_parts(tmp_path):
    found, _ = run("parts", tmp_path / "parts.json", *SMALL, "--matrix", "64")
    rows = found["rows"]
    assert all(row["milliseconds"] >= 0 for row in rows.values()) and rows["the rest"]["gigaoperations"] == 0
    # two networks forward and one backward, 3 x 3 at every place: the first layer's images need no gradient
    layers = [(3, 16, 32), (16, 32, 16), (32, 64, 8), (64, 128, 4), (128, 128, 4)]
    forward = [2 * 9 * inputs * outputs * size**2 * 32 for inputs, outputs, size in layers]
    kind = torch.bfloat16 if has_bfloat16("cpu") else torch.float32
    before = [32, *(size for *_, size in layers)]  # the side of each layer's input
    dense = [dense_pays(side**2, 9, pair, kind) for side, (*pair, _) in zip(before, layers)]
    products = [not d and product_pays(size**2, pair, kind) for d, (*pair, size) in zip(dense, layers, strict=True)]
    # matrix products: all of a layer that is dense, and these gradients of weights
    expected = sum(f * (0 if d else 4 - p) for f, d, p in zip(forward, dense, products, strict=True)) - forward[0]
    assert rows["convolutions"]["gigaoperations"] == pytest.approx(expected / 1e9, abs=0.01)


@pytest.mark.parametrize("name", ["ablations", "controls", "equivalence", "keep_run", "ladder", "pages", "scaling"])
def test_benchmarks_of_minutes_begin(name, monkeypatch, capsys):
    "They are too long for a test; here their imports and options."
    monkeypatch.syspath_prepend(str(FOLDER))
    script = importlib.import_module(name)
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    printed = " ".join(capsys.readouterr().out.split())
    assert not ended.value.code and f"usage: {name}.py" in printed and script.__doc__.split("\n")[0] in printed


def test_the_exact_loss_of_equivalence_reaches_the_method(monkeypatch):
    "What is patched is the name that `ISD` calls; otherwise both forms would be the same."
    monkeypatch.syspath_prepend(str(FOLDER))
    script, seen = importlib.import_module("equivalence"), []
    monkeypatch.setattr("isd_nb.isd.product_precision", lambda *given: torch.bfloat16)

    def loss(queries, *others, products):
        seen.append(products)
        return queries.sum()

    def train_once(*given):
        method = build_method(find_recipe("digits"), digits()[0])
        method(torch.zeros(4, 1, 16, 16), torch.zeros(4, 1, 16, 16))
        return []

    monkeypatch.setattr("isd_nb.isd.streaming_soft_label_loss", loss)
    monkeypatch.setattr(script, "train_fast", train_once)
    for form in (script.train_fast, script.train_with_exact_loss):
        form(None, None, None)
    assert seen == [torch.bfloat16, torch.float32]


def is_first(folder):
    "Whether this process is the first of those that call this in a folder."
    with suppress(FileExistsError):
        (folder / "first").symlink_to(str(os.getpid()))
    return os.readlink(folder / "first") == str(os.getpid())


def test_readers_of_packed_sets_begin_together(monkeypatch, tmp_path):
    "Here one has read to its end before the other has opened: each would be measured alone."
    monkeypatch.syspath_prepend(str(FOLDER))
    packed = importlib.import_module("packed")

    def of_one_late(folder, size, batch):
        time.sleep(0 if is_first(folder) else 0.3)
        return itertools.repeat(torch.zeros(batch))
    monkeypatch.setitem(packed.CONTESTANTS, "late", of_one_late)
    found = packed.read_together(2, "late", tmp_path, 8, 4, 0.2)
    (_, *one, _), (_, *other, _) = found
    assert max(one[0], other[0]) < min(one[1], other[1]) and packed.rates(found)["images_per_second"] > 0


@pytest.mark.parametrize("how", ["error", "end"])
def test_a_reader_that_fails_does_not_keep_the_others_waiting(how, monkeypatch, tmp_path):
    "Its error is the one that is shown; a process may also be ended from outside."
    monkeypatch.syspath_prepend(str(FOLDER))
    packed = importlib.import_module("packed")

    def one_fails(folder, size, batch):
        if is_first(folder):
            os._exit(1) if how == "end" else torch.zeros(2)[5]
        return itertools.repeat(torch.zeros(batch))
    monkeypatch.setitem(packed.CONTESTANTS, "fails", one_fails)
    monkeypatch.setattr(packed, "OPENING", 20.0 if how == "error" else 0.2)
    with pytest.raises(IndexError if how == "error" else packed.multiprocessing.TimeoutError):
        packed.read_together(2, "fails", tmp_path, 8, 4, 0.1)


def test_a_file_states_instructions_and_commit(monkeypatch, tmp_path):
    "Two processors of one name may differ, as the code of one version may; without a clone there is no commit."
    monkeypatch.syspath_prepend(str(FOLDER))
    common = importlib.import_module("common")
    monkeypatch.setattr(common, "COMMIT", "1234567+")
    found = common.about("x", rounds=2)
    assert found["instructions"].startswith(torch.backends.cpu.get_cpu_capability()) and found["rounds"] == 2
    assert found["commit"] == "1234567+" and common.commit(tmp_path, tmp_path / "isd_nb") is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "begin"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{7,}", common.commit(tmp_path, tmp_path / "isd_nb"))
    assert common.commit(tmp_path) is None  # the package that runs is another
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "new.py").touch()
    assert common.commit(tmp_path, tmp_path / "isd_nb").endswith("+")
