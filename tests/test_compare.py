"""isd_compare: a run of its own for each method, results that survive interruption, and a table that adds up."""
import fcntl
import json
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import call
from torch import nn
from launching import QUICK, Forked, forking

from isd_nb.cli.compare import isd_compare, report
from isd_nb.studies import compare as module
from isd_nb.studies.compare import (
    Task, compare, count_passes, finished, plan, read_settings, recipe_for, run_tasks, smaller_batch, step_cost)
from isd_nb.studies.teacher_and_student import decay_table
from isd_nb.studies.tables import by_method, comparison_table, compute, plot_compute, plot_learning
from isd_nb.engine.contract import check_contract
from isd_nb.errors import InputError, refusal
from isd_nb.sources.digits import digits
from isd_nb.sources.door import Sets
from isd_nb.engine.runs import read_metrics
from isd_nb.engine.state import save_encoders
from isd_nb.methods.building import build_method, methods
from isd_nb.protocols.storage import write_json
from isd_nb.recipe import Recipe, find_recipe, learning_rate, recipe_to_json

TINY = Recipe("tiny", steps=6, evaluations=20, batch_size=32, queue_size=64, width=4, projector=(10, 6), predictor=(8,),
              precision="float32")
OWN = '''
from isd_nb.isd import ISD
from isd_nb.methods.byol import BYOLAsym

class Named(ISD):
    def encoders(self):
        return {"mine": self.student}

class Mine(BYOLAsym):
    options = {"scale": 1.0}

    @classmethod
    def from_recipe(cls, student, recipe, images):
        method = super().from_recipe(student, recipe, images)
        method.scale = cls.settings(recipe)["scale"]
        return method

    def forward(self, view_q, view_k):
        output = super().forward(view_q, view_k)
        return output._replace(loss=self.scale * output.loss)

class Breaks(BYOLAsym):
    def forward(self, view_q, view_k):
        raise RuntimeError("this method always dies")
'''
SCRIPT = '''
import json
import sys
from pathlib import Path
from isd_nb.engine.launch import one_sentence
from isd_nb.cli.compare import report
from isd_nb.studies import compare as module
from isd_nb.studies.compare import compare
from isd_nb.recipe import recipe_from_json
from launching import forking
module.subprocess = forking("fork")
base, out = recipe_from_json(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2])
with one_sentence("isd_compare", "the same command goes on"):
    report(compare(base, ["byol_asym"], [0], out, budget=3200, device="cpu"), out)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "A package that is not ours, on the path of this process and of those it starts, which are forks."
    monkeypatch.setattr("isd_nb.studies.compare.subprocess", forking())
    monkeypatch.setenv(QUICK, "1")
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "my_methods.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.mark.parametrize("name", sorted(methods))
def test_every_method_keeps_the_contract(name: str, tmp_path: Path) -> None:
    images = digits()[0].subset(range(64))
    options = {}
    if name == "compress":
        save_encoders(tmp_path / "encoder.safetensors", build_method(TINY, images), TINY, images)
        options = {"guide": str(tmp_path)}
    check_contract(replace(TINY, method=name, options=options), images)


def test_queue_methods_never_meet_their_own_key() -> None:
    "Neither in the step that makes the key, nor is it missing from the queue after it."
    images = digits()[0].subset(range(64))
    for name in ("isd", "moco_v2", "co2"):
        method = build_method(recipe_for(name, TINY, 64), images).train()
        views = [torch.rand(32, 1, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
        output = method(*views)
        assert (output.keys @ method.queue.anchors.T).max() < 0.9999, name
        method.update(output)
        torch.testing.assert_close((output.keys @ method.queue.anchors.T).amax(1), torch.ones(32))


def test_a_pass_back_is_counted_where_a_gradient_arrives() -> None:
    "Keys that the student computes and that are detached afterwards cost no backward pass."
    images = digits()[0].subset(range(64))
    student, counts = build_method(recipe_for("isd", TINY, 64), images).student, {"forward": 0.0, "backward": 0.0}
    handles = count_passes(nn.ModuleList([student]), 8 * 16 * 16, counts)
    queries, keys = student(torch.rand(8, 1, 16, 16)), student(torch.rand(8, 1, 16, 16)).detach()
    assert counts == {"forward": 2.0, "backward": 0.0}
    (queries - keys).square().sum().backward()
    assert counts == {"forward": 2.0, "backward": 1.0} and len(handles) == 1


def test_symmetric_losses_cost_twice() -> None:
    images = digits()[0].subset(range(64))
    cost = {m: step_cost(recipe_for(m, TINY, 64), images) for m in ("byol", "byol_asym", "supervised")}
    assert cost["byol"]["flops_per_image"] == 2 * cost["byol_asym"]["flops_per_image"]
    assert cost["byol_asym"]["passes_per_image"] == {"forward": 2.0, "backward": 1.0}
    # by hand: a pass of the tiny net, multiplications and additions; backward twice, but not to the pixels
    sizes, widths = (16, 8, 4, 2, 2), (4, 8, 16, 32, 32)
    layers = [2 * 9 * i * o * s * s for i, o, s in zip((1, *widths), widths, sizes)]
    layers.append(2 * 32 * 10)  # the classifier
    assert cost["supervised"]["flops_per_image"] == 3 * sum(layers) - layers[0]


def test_the_cost_of_a_step_is_counted_on_a_few_images() -> None:
    "A batch of ImageNet is too large for a CPU: a part of it is counted, divided as batch norm needs it."
    recipe = replace(find_recipe("imagenet"), accumulate=2)
    part = smaller_batch(recipe)
    assert part.batch_size <= 32 < recipe.batch_size and part.batch_size % (2 * recipe.batch_norm_splits * 2) == 0
    assert smaller_batch(TINY) is TINY


def test_a_foreign_method_is_compared_and_a_crash_loses_nothing(own: Path, small: Path) -> None:
    said: list[str] = []
    names = ["my_methods:Breaks", "my_methods:Mine", "isd", "compress"]
    settings = own / "settings.json"
    mine = {"settings": {"options.scale": 2.0, "learning_rate": 0.05}, "trials": [{}, {}]}
    settings.write_text(json.dumps({"my_methods:Mine": mine}))
    out = own / "out"
    base = replace(TINY, data=f"folder:{small}")
    comparison = compare(base, names, [3], out, budget=192, settings=settings, jobs=2, device="cpu", tell=said.append)
    assert comparison == json.loads((out / "comparison.json").read_text())
    assert set(comparison["failures"]) == {"my_methods.Breaks-3"}
    assert "RuntimeError: this method always dies (my_methods.py, line" in comparison["failures"]["my_methods.Breaks-3"]
    runs = {r["method"]: r for r in comparison["runs"]}
    assert set(runs) == {"my_methods:Mine", "isd", "compress"}
    assert runs["my_methods:Mine"]["settings"] == {"learning_rate": 0.05, "options": {"scale": 2.0}}
    assert comparison["trials"] == {"my_methods:Mine": 2}
    assert runs["compress"]["guide"] == "isd-3" and set(runs["compress"]["scores"]) == {"student"}
    assert compute(runs["compress"], comparison) > compute(runs["isd"], comparison)
    for run in runs.values():
        assert run["images_seen"] == 192 and run["seconds"] >= 0 and 50 < run["peak_memory_mb"] < 10_000
        assert [row["images_seen"] for row in run["curve"]] == [0, *range(32, 193, 32)]
        assert all(0 <= v <= 1 for scores in run["scores"].values() for v in scores.values())
    table = comparison_table(comparison)
    assert "compress learns from the ISD run" in table and "my_methods.Breaks-3 failed" in table
    assert {line.split()[0] for line in table.splitlines()[1:6]} == {"Mine", "isd", "compress", "its"}  # "its student"
    assert list(by_method(comparison)) == sorted(runs, key=lambda m: -max(
        s["knn20"] for w, s in runs[m]["scores"].items() if w == "teacher" or "teacher" not in runs[m]["scores"]))


def test_encoders_of_other_names_are_compared(own: Path, small: Path) -> None:
    "The first of them counts, and a run of an earlier version, which noted no curve of it, is left out of the figure."
    base, names = replace(TINY, data=f"folder:{small}"), ["my_methods:Named"]
    comparison = compare(base, names, [0], own / "out", budget=96, device="cpu", tell=lambda line: None)
    assert not comparison["failures"] and [set(r["scores"]) for r in comparison["runs"]] == [{"mine"}]
    assert [set(row) - {"loss"} for row in comparison["runs"][0]["curve"]] == [{"images_seen", "knn20_mine"}] * 4
    assert compare(base, names, [0], own / "out", budget=96, device="cpu", tell=lambda line: None) == comparison
    table = comparison_table(comparison)
    assert "Named has neither a teacher nor a student: its scores are those of its encoder 'mine'" in table
    assert "learning curve" not in table and [ax.get_title() for ax in plot_learning(comparison).axes] == ["Named"]
    comparison["runs"][0]["curve"] = []
    assert "Named has no learning curve" in comparison_table(comparison)
    assert [ax.get_title() for ax in plot_learning(comparison).axes] == [""]


@pytest.fixture
def three_runs() -> dict:
    "A comparison of three methods, two of them of one class name."
    def made(method: str, knn20: float) -> dict:
        scores = dict.fromkeys(("knn1", "knn20", "linear", "labels_1", "labels_10"), knn20)
        return dict(method=method, seed=0, images_seen=9, seconds=2.0, images_per_second=5.0, peak_memory_mb=6.0,
                    guide=None, scores={"student": scores}, flops_per_image=1,
                    passes_per_image={"forward": 2.0, "backward": 1.0},
                    curve=[{"images_seen": i, "knn20_student": knn20} for i in range(2)])

    runs = [made("a:Mine", 0.75), made("b:Mine", 0.25), made("c:Other", 0.5)]
    pixels = dict.fromkeys(("pixels", "untrained"), runs[0]["scores"]["student"])
    return dict(runs=runs, baselines=[dict(seed=0, scores=pixels)], seeds=[0], failures={})


def test_two_methods_of_one_class_name_stay_two(three_runs: dict) -> None:
    comparison = three_runs
    assert [line.split()[0] for line in comparison_table(comparison).splitlines()[1:4]] == ["a:Mine", "Other", "b:Mine"]
    panels = plot_learning(comparison).axes
    assert [ax.get_title() for ax in panels] == ["a:\nMine", "Other", "b:\nMine"]
    assert [ax.lines[-1].get_ydata()[-1] for ax in panels] == [0.75, 0.5, 0.25]
    assert {text.get_text() for text in plot_compute(comparison).axes[0].texts} == {"a:Mine", "b:Mine", "Other"}


def test_only_figures_that_were_drawn_are_named(three_runs: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    report(three_runs, tmp_path)
    assert "comparison.json, table.csv, learning.png, compute.png, and the runs" in capsys.readouterr().out
    assert all((tmp_path / name).is_file() for name in ("table.csv", "learning.png", "compute.png"))
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    report(three_runs, tmp_path)
    printed = capsys.readouterr().out
    assert "no figures: matplotlib" in printed and ".png" not in printed
    assert "comparison.json, table.csv, and the runs" in printed


@pytest.mark.parametrize(("content", "message"), [
    ({"my_methods:Mien": {"learning_rate": 9.0}}, "did you mean 'my_methods:Mine'"),
    ({"my_methodz:Mine": {}}, "No module named 'my_methodz'"),
    ({"my_methods:Mine": {"settings": {}, "learning_rate": 7.0}}, "'learning_rate' of my_methods:Mine beside its"),
    ({"isd": {"settings": {}, "options.scale": 7.0}}, "'options.scale' of isd beside its"),
])
def test_settings_without_effect_are_refused(content: dict, message: str, own: Path) -> None:
    write_json(own / "tuned.json", content)
    assert message in refusal(read_settings, own / "tuned.json", ["my_methods:Mine"])
    kept = {"settings": {"learning_rate": 0.1}, "score": 1, "trials": 3, "method": "my_methods:Mine", "data": "digits"}
    write_json(own / "tuned.json", {"my_methods:Mine": kept, "swav": {"learning_rate": 0.2}})  # swav is not compared
    assert read_settings(own / "tuned.json", ["my_methods:Mine"]) == {
        "my_methods:Mine": ({"learning_rate": 0.1}, 3), "swav": ({"learning_rate": 0.2}, None)}


def test_a_stopped_comparison_goes_on(own: Path, small: Path) -> None:
    "SIGTERM in the middle of a run: it saves, and the same command ends with what an undisturbed run gives."
    script = own / "script.py"
    script.write_text(SCRIPT)
    write_json(own / "recipe.json", recipe_to_json(replace(TINY, data=f"folder:{small}", evaluations=8)))

    def begin(out: str) -> Forked:
        return Forked([sys.executable, script, own / "recipe.json", own / out], stdout=subprocess.PIPE,
                      stderr=subprocess.PIPE, text=True)

    process = begin("stopped")
    deadline = time.monotonic() + 300
    while len(read_metrics(own / "stopped" / "byol_asym-0")) < 3:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command goes on" in errors, errors
    assert not (own / "stopped" / "byol_asym-0" / "result.json").exists()
    saved = sorted((own / "stopped" / "byol_asym-0" / "checkpoints").glob("state_*.pt"))
    assert saved and 0 < int(saved[-1].stem.removeprefix("state_")) < 100
    resumed, straight = begin("stopped"), begin("straight")
    printed = [p.communicate(timeout=500) for p in (resumed, straight)]
    assert resumed.returncode == straight.returncode == 0, printed
    assert "2 runs, 1 of them finished" in printed[0][0] and (own / "stopped" / "compute.png").is_file()
    scores = [json.loads((own / name / "comparison.json").read_text())["runs"][0] for name in ("stopped", "straight")]
    assert scores[0]["scores"] == scores[1]["scores"]
    curves = [run["curve"] for run in scores]
    assert curves[0] == curves[1] and len(curves[0]) == 9  # the loss of the interrupted row included


def test_other_settings_are_not_taken_for_these(tmp_path: Path) -> None:
    task, *_ = [t for t in plan(TINY, ["isd"], [0], 64, tmp_path, {}) if t.trained]
    assert not finished(task)
    Path(task.out).mkdir()
    write_json(Path(task.out) / "config.json", {"recipe": recipe_to_json(replace(task.recipe, learning_rate=0.3))})
    with pytest.raises(InputError, match="another learning_rate"):
        finished(task)


def test_a_second_process_in_the_same_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "subprocess", forking())
    (tmp_path / "logs").mkdir()
    task = Task(replace(TINY, method="isd"), str(tmp_path / "isd-0"), {}, device="cpu")
    with (tmp_path / "logs" / "isd-0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        failures = run_tasks([task])
    assert list(failures) == ["isd-0"] and "another process is at work" in failures["isd-0"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--methods", "isd,mocov2"], "did you mean 'moco_v2'"),
    (["--methods", "isd", "--seeds", "one"], "whole numbers"),
    (["--methods", "isd", "--settings", "missing.json"], "cannot be read"),
    (["--data", "folder:missing", "--methods", "isd"], "missing"),
])
def test_mistakes_end_with_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = call(isd_compare, tmp_path, *arguments)
    assert result.returncode == 2 and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_budget_decides_the_steps() -> None:
    base: Callable[[str], Recipe] = lambda m: recipe_for(m, find_recipe("digits"), 998_400)  # noqa: E731
    assert {base(m).steps * base(m).batch_size for m in methods} == {998_400}


def test_the_images_are_let_go_before_the_runs_begin(
        small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Every run reads them in a process of its own."
    read: list[weakref.ref] = []

    def noted(*given: Any) -> Sets:
        sets = sets_of(*given)
        read.append(weakref.ref(sets.train))
        return sets
    sets_of = module.comparable_sets
    monkeypatch.setattr(module, "comparable_sets", noted)
    monkeypatch.setattr(module, "do_missing", lambda tasks, out, about, *rest: about | {"there": read[0]() is not None})
    base = replace(find_recipe("digits"), data=f"folder:{small}", steps=2, batch_size=16, queue_size=32)
    about = compare(base, ["isd"], [0], tmp_path / "out", device="cpu", tell=lambda text: None)
    assert not about["there"] and about["images"][1]["images"] > 0


def test_thirds_of_a_comparison_that_states_epochs() -> None:
    "`images` of a comparison are fingerprints, and its steps are those of its budget."
    base = replace(TINY, steps=None, epochs=3, learning_rate=0.5, momentum=(0.9, 0.9))
    curve = [dict(images_seen=n, knn20_teacher=0.6, knn20_student=0.5) for n in (0, 32, 64, 96)]
    known = [dict(fingerprint="a1", images=40, classes=2), None]
    saved = dict(recipe=recipe_to_json(base), images=known, budget_images=96 * 32,
                 runs=[dict(method="isd", seed=seed, curve=curve) for seed in (0, 1)])
    leads, rate, momentum = decay_table(saved, ["isd"]).splitlines()[1:]
    assert leads.count("+10.0 points") == 3 and momentum.split()[-3:] == ["0.1000"] * 3
    assert rate.split()[1:] == [f"{learning_rate(base, step, 96):.3f}" for step in (16, 48, 80)]


def test_all_methods_are_compared_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple] = []
    nothing = {"runs": [], "failures": {}}
    monkeypatch.setattr("isd_nb.cli.compare.compare", lambda *asked: given.append(asked) or nothing)
    words = ["--jobs", "2", "--budget-images", "192", "--seeds", "3", "--device", "cpu"]
    assert call(isd_compare, tmp_path, *words).returncode == 0
    ((base, names, seeds, out, budget, settings, jobs, device, _, _),) = given
    assert names == [*methods] and (seeds, budget, settings, jobs, device) == ([3], 192, None, 2, "cpu")
    tasks = plan(base, names, seeds, budget, out, {})
    assert {task.recipe.method for task in tasks if task.trained} == {*methods}
