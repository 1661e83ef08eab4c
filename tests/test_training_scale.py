"""A batch in parts, statistics of several processes, compiled nets, old runs, trackers: all train as they say."""
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import Launched, finish
from test_processes import newest, same

from isd_nb.data import ImageSet
from isd_nb.errors import InputError
from isd_nb.sources.digits import digits
from isd_nb.engine import estimate
from isd_nb.engine.estimate import activation_line, dry_run, measure_activations, plan_run
from isd_nb.method import Method
from isd_nb.methods.building import with_method
from isd_nb.recipe import Recipe, check_recipe, find_recipe, recipe_to_json, recipes
from isd_nb.engine.runs import open_run
from isd_nb.protocols.storage import write_json
from isd_nb.engine.state import prepare_training, train_step
from isd_nb.engine.training import train
from isd_nb.sources.batches import EpochSampler

TOY = Recipe("toy", steps=8, batch_size=16, queue_size=40, width=4, projector=(10, 6), predictor=(8,), evaluations=1,
             precision="float32", learning_rate=0.01)
SCRIPT = '''
import json, os, signal, sys
from pathlib import Path
from isd_nb.sources.digits import digits
from isd_nb.engine import training
from isd_nb.protocols.storage import Stopped
from isd_nb.recipe import recipe_from_json
images = digits()[0].subset(range(100))
recipe = recipe_from_json(json.loads(Path(sys.argv[1]).read_text()))
step = training.train_step
def until_asked(state, *given):
    if f"--stop={state.step}" in sys.argv and state.accelerator.is_last_process:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(state, *given)
training.train_step = until_asked
try:
    training.train(recipe, images, sys.argv[2], resume="--resume" in sys.argv, device="cpu", save_every=0.1, show=False)
except Stopped:
    sys.exit(130)
'''


@pytest.fixture
def images() -> ImageSet:
    return digits()[0].subset(range(100))


@pytest.fixture
def launch(start: Callable[..., Launched], tmp_path: Path):
    "Start a training of a recipe in so many processes."
    (tmp_path / "run.py").write_text(SCRIPT)

    def begin(recipe: Recipe, name: str, processes: int = 1, *arguments: str) -> Launched:
        write_json(tmp_path / f"{name}.json", recipe_to_json(recipe))
        places = str(tmp_path / f"{name}.json"), str(tmp_path / name)
        return start(tmp_path / "run.py", *places, *arguments, processes=processes)
    return begin


def weights_after(recipe: Recipe, images: ImageSet, steps: int = 8) -> dict[str, torch.Tensor]:
    state = prepare_training(recipe, images, device="cpu")
    for indices in EpochSampler(len(images), recipe.batch_size, recipe.seed, stop=steps):
        train_step(state, indices, images.get(indices))
    return state.method.state_dict()


@pytest.mark.parametrize("method", ["isd", "byol_asym", "pirl", "invp", "simsiam"])
def test_micro_batches_are_splits_of_batch_norm(images: ImageSet, method: str) -> None:
    "(MoCo and CO2 shuffle their keys among the splits, so that theirs differ.)"
    recipe = replace(TOY, method=method)
    torch.testing.assert_close(weights_after(replace(recipe, accumulate=4), images, 2),
                               weights_after(replace(recipe, batch_norm_splits=4), images, 2), rtol=1e-3, atol=1e-4)


def test_processes_and_micro_batches_cut_alike(launch, images: ImageSet, tmp_path: Path) -> None:
    "Two processes with two micro-batches each do what batch norm in four parts does."
    few = replace(TOY, steps=3)
    finish(launch(replace(few, accumulate=2), "cut", 2))
    alone = train(replace(few, batch_norm_splits=4), images, tmp_path / "alone", device="cpu", show=False)
    torch.testing.assert_close(newest(tmp_path / "cut")["method"], alone.method.state_dict(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("processes", [2, 4])
def test_synchronised_batch_norm_sees_the_whole_batch(launch, images: ImageSet, tmp_path: Path, processes: int) -> None:
    few = replace(TOY, steps=3)
    finish(launch(replace(few, batch_norm="sync"), "together", processes))
    alone = train(few, images, tmp_path / "alone", device="cpu", show=False)
    torch.testing.assert_close(newest(tmp_path / "together")["method"], alone.method.state_dict(), rtol=1e-3, atol=1e-4)


def test_exact_resume_in_two_processes(launch, tmp_path: Path) -> None:
    "Stopped by a SIGTERM to one in the middle and resumed: bit for bit the run that was never stopped."
    recipe = replace(TOY, steps=40, evaluations=2)
    finish(launch(recipe, "straight", 2))
    process = launch(recipe, "stopped", 2, "--stop=15")
    assert process.wait(240) == 130, process.errors[-2000:]
    assert newest(tmp_path / "stopped")["step"] == 16  # a row of metrics is written every step
    finish(launch(recipe, "stopped", 2, "--resume"))
    same(newest(tmp_path / "straight"), newest(tmp_path / "stopped"))


def test_one_process_may_be_asked_to_stop(launch, tmp_path: Path) -> None:
    "A signal to one worker alone stops all of them, within 20 steps, with a checkpoint."
    recipe = replace(TOY, steps=100_000)
    for resumed, asked, step in (((), 25, 40), (("--resume",), 45, 60)):
        assert launch(recipe, "run", 2, f"--stop={asked}", *resumed).wait(240) == 130
        assert newest(tmp_path / "run")["step"] == step


@pytest.mark.parametrize("backend", ["aot_eager"])  # all that "eager" does, and the backward pass
def test_compiled_training_is_training(images: ImageSet, tmp_path: Path, backend: str) -> None:
    torch._dynamo.reset()
    plain = train(TOY, images, tmp_path / "plain", device="cpu", show=False)
    seen: list[float] = []

    def evaluate(method) -> dict[str, float]:
        with torch.no_grad():
            seen.append(float(method.student.eval()(images.images[:5].float() / 255).norm()))
        method.student.train()
        return {}
    compiled = train(replace(TOY, compile=backend), images, tmp_path / "compiled", evaluate, device="cpu", show=False)
    torch.testing.assert_close(compiled.method.state_dict(), plain.method.state_dict(), rtol=1e-4, atol=1e-5)
    assert len(seen) == 2  # evaluated before and after, in eager mode, at another batch size
    assert compiled.method.student.backbone._compiled_call_impl is None  # what comes after has other batch sizes


def test_a_compiler_that_fails_is_left_out(images: ImageSet, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(replace(TOY, compile="nonsense"), images, tmp_path / "run", device="cpu", show=False)
    assert any("training goes on without it" in str(w.message) for w in caught)
    assert newest(tmp_path / "run")["step"] == 8


def test_a_run_from_before_a_setting_existed_goes_on(images: ImageSet, tmp_path: Path) -> None:
    train(TOY, images, tmp_path / "run", device="cpu", show=False)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for name in ("accumulate", "batch_norm", "compile", "stored_size"):
        del config["recipe"][name]
    write_json(tmp_path / "run" / "config.json", config)
    open_run(tmp_path / "run", TOY, resume=True)
    with pytest.raises(InputError, match="accumulate 1 to 2"):
        open_run(tmp_path / "run", replace(TOY, accumulate=2), resume=True)


def test_tensorboard_gets_the_rows(images: ImageSet, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(TOY, images, tmp_path / "run", device="cpu", show=False, tracker="tensorboard")
    events = next((tmp_path / "run" / "trackers").rglob("events*")).parent
    found = reader.EventAccumulator(str(events)).Reload()
    assert [e.step for e in found.Scalars("loss")] == list(range(1, 9))


def test_a_tracker_that_is_missing_is_named(images: ImageSet, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from accelerate.utils import is_wandb_available
    if is_wandb_available():
        pytest.skip("Weights & Biases is installed here")
    with pytest.raises(InputError, match="pip install wandb"):
        train(TOY, images, tmp_path / "run", device="cpu", show=False, tracker="wandb")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", sorted(recipes))
def test_every_recipe_can_be_built_and_planned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = find_recipe(name)
    channels = 1 if name == "digits" else 3
    count = max(5188, 2 * recipe.batch_size)
    for processes in (1, 2, 8):
        check_recipe(recipe, count, processes)
    # large images and long queues take long here; sizes scale exactly
    queue = min(2 * recipe.batch_size, recipe.queue_size)
    recipe = replace(recipe, image_size=16, queue_size=queue)
    batch = max(2, 2 * recipe.batch_norm_splits)
    asked, net = (recipe, count, channels), estimate.pretend_method(recipe, count, channels)

    def built_once(*given: object) -> Method:
        assert given == asked
        return net
    monkeypatch.setattr(estimate, "pretend_method", built_once)
    kept, operations = measure_activations(recipe, channels, batch, count)  # once: two batches would give a line
    once = (0.0, kept / batch, operations / batch)
    plan = plan_run(recipe, count, channels=channels, images_per_second=1000, activations=once)
    assert plan.steps == round((recipe.epochs or 0) * (count // recipe.batch_size)) or plan.steps == recipe.steps
    assert plan.checkpoint_bytes > plan.queue_bytes >= 0 and plan.seconds == plan.images_seen / 1000


def test_a_dry_run_says_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    line = (0.0, 1.0, 1.0)  # see `test_activations_lie_on_a_line`
    monkeypatch.setattr(estimate, "activation_line", lambda *given: line)
    recipe = find_recipe("cifar10_small")
    plan = plan_run(recipe, 50_000, images_per_second=1000, activations=line)
    text = dry_run(recipe, 50_000, images_per_second=1000)
    assert f"{plan.steps:,}" in text and f"{plan.parameters:,}" in text and "checkpoint" in text


def test_a_checkpoint_has_the_planned_size(images: ImageSet, tmp_path: Path) -> None:
    recipe = replace(TOY, width=16, queue_size=500)
    train(recipe, images, tmp_path / "run", device="cpu", show=False)
    size = next((tmp_path / "run" / "checkpoints").glob("state_*.pt")).stat().st_size
    planned = plan_run(recipe, len(images), channels=1, images_per_second=1).checkpoint_bytes
    assert planned < size < 1.5 * planned + 100_000  # tensors, and a little for their names


def test_activations_lie_on_a_line() -> None:
    recipe = replace(TOY, image_size=32, precision="auto", width=8)
    fixed, each, operations = activation_line(recipe)
    kept, counted = measure_activations(recipe, batch=64)
    assert kept == pytest.approx(fixed + 64 * each, rel=0.02) and counted == pytest.approx(64 * operations)


def test_other_methods_keep_the_budget() -> None:
    for method in ("moco_v2", "co2", "byol_asym", "simclr"):
        recipe = with_method(find_recipe("cifar10"), method)
        assert (recipe.epochs, recipe.batch_size, recipe.backbone) == (200, 512, "resnet18")
        assert recipe.method == method and (recipe.batch_norm_splits >= 2) == (method in ("moco_v2", "co2"))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
