"""Full disks, Ctrl-C with any kind of workers, runs that begin together, consoles without letters, lost figures."""
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from conftest import SMALL, TINY, call, full_disk
from launching import run_forked
from isd_nb.cli.evaluate import isd_eval
from isd_nb.cli.explore import isd_explore
from isd_nb.cli.export import isd_export
from isd_nb.cli.options import own_directory
from isd_nb.cli.train import isd_train as train_command
from isd_nb.engine.runs import open_run, read_metrics, write_metrics
from isd_nb.engine.state import save_encoders
from isd_nb.engine.training import train
from isd_nb.errors import InputError
from isd_nb.method import Method
from isd_nb.methods.building import build_method
from isd_nb.protocols.storage import Stopped, load_checkpoint, save_checkpoint, write_json, writing
from isd_nb.recipe import find_recipe
from isd_nb.sources.digits import digits

QUICK = replace(find_recipe("digits"), steps=12, batch_size=16, queue_size=32, width=4, projector=(8,), predictor=(8,),
                evaluations=3, precision="float32")
IMAGES = digits()[0].subset(range(100))


@pytest.mark.parametrize("write", ["checkpoint", "encoder", "summary"])
def test_a_full_disk_is_one_sentence_and_what_was_there_stays(write: str, tmp_path: Path) -> None:
    method = build_method(QUICK, IMAGES)
    kinds: Mapping[str, Callable[[int], object]] = {
        "checkpoint": lambda step: save_checkpoint(tmp_path, step, {"step": step, "weights": torch.zeros(50_000)}),
        "encoder": lambda step: save_encoders(tmp_path / "encoder.safetensors", method, QUICK, IMAGES, step=step),
        "summary": lambda step: write_json(tmp_path / "summary.json", {"step": step})}
    kinds[write](1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk() as fill, pytest.raises(OSError, match=r"could not be written \(.*File too large.*\); what"):
        fill()
        kinds[write](2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_whose_disk_was_full_goes_on(tmp_path: Path) -> None:
    straight = train(QUICK, IMAGES, tmp_path / "straight", device="cpu", show=False)
    calls = iter(range(9))
    with full_disk() as fill, pytest.raises(OSError, match="could not be written"):
        train(QUICK, IMAGES, tmp_path / "full", device="cpu", show=False, save_every=0,
              evaluate=lambda method: fill() or {} if next(calls) == 2 else {})  # at step 8; then the next write fails
    assert load_checkpoint(tmp_path / "full" / "checkpoints")["step"] == 7
    resumed = train(QUICK, IMAGES, tmp_path / "full", resume=True, device="cpu", show=False)
    torch.testing.assert_close(resumed.method.state_dict(), straight.method.state_dict(), rtol=0, atol=0)
    clocks = {"seconds", "images_per_second"}
    straight_rows, rows = ([{k: v for k, v in row.items() if k not in clocks} for row in read_metrics(tmp_path / name)]
                           for name in ("straight", "full"))
    assert rows == straight_rows


def test_what_was_learned_is_saved_when_an_evaluation_fails(tmp_path: Path) -> None:
    def evaluate(method: Method) -> dict[str, float]:
        assert next(calls) < 2, "a mistake in an evaluation"
        return {}
    calls = iter(range(9))
    with pytest.raises(AssertionError, match="a mistake"):
        train(QUICK, IMAGES, tmp_path / "run", evaluate, device="cpu", show=False)
    assert load_checkpoint(tmp_path / "run" / "checkpoints")["step"] == 8  # not of the last minute: of the last step
    resumed = train(QUICK, IMAGES, tmp_path / "run", resume=True, device="cpu", show=False)
    straight = train(QUICK, IMAGES, tmp_path / "straight", device="cpu", show=False)
    torch.testing.assert_close(resumed.method.state_dict(), straight.method.state_dict(), rtol=0, atol=0)
    losses, others = ([row.get("loss") for row in read_metrics(tmp_path / name)] for name in ("run", "straight"))
    assert losses == others


def test_the_loss_of_an_interrupted_row_is_the_mean_of_all_its_steps(tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(QUICK, steps=9, evaluations=1, batch_size=4, queue_size=8)
    # a row every three steps, as a run of 300 has them
    monkeypatch.setattr("isd_nb.engine.training.is_due", lambda step, steps, _: (step % 3 == 0, step == steps))

    def stop_inside_a_row(steps: int) -> Callable:
        def watch(views: torch.Tensor) -> None:
            nonlocal steps
            steps -= 1
            if steps == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        return watch
    straight = train(recipe, IMAGES, tmp_path / "straight", device="cpu", show=False)
    stop = stop_inside_a_row(5)
    forward = type(straight.method).forward
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match="step 5 of 9"):
        patch.setattr(type(straight.method), "forward", lambda self, *views: (stop(views), forward(self, *views))[1])
        train(recipe, IMAGES, tmp_path / "stopped", device="cpu", show=False)
    assert len(load_checkpoint(tmp_path / "stopped" / "checkpoints")["losses"]) == 2
    train(recipe, IMAGES, tmp_path / "stopped", resume=True, device="cpu", show=False)
    a, b = ([(r["step"], r.get("loss")) for r in read_metrics(tmp_path / name)] for name in ("straight", "stopped"))
    assert a == b and [step for step, _ in a] == [0, 3, 6, 9]


def test_a_small_rate_keeps_its_digits(tmp_path: Path) -> None:
    train(replace(QUICK, learning_rate=3.7e-7, steps=2), IMAGES, tmp_path / "run", device="cpu", show=False)
    assert read_metrics(tmp_path / "run")[0]["learning_rate"] == 3.7e-7


CTRL_C = """
import multiprocessing, sys
from dataclasses import replace
from pathlib import Path
def main():
    import torch
    from isd_nb.data import ImageSet
    from isd_nb.engine.launch import one_sentence
    from isd_nb.engine.training import train
    from isd_nb.recipe import find_recipe
    recipe = replace(find_recipe("digits"), steps=5000, batch_size=16, queue_size=32, width=4,
                     projector=(8,), predictor=(8,), evaluations=1, precision="float32")
    files = tuple(sorted(Path(sys.argv[2]).rglob("*.png")))
    with one_sentence("isd_train"):
        train(recipe, ImageSet(None, None, (), files, (3, 16, 16)), sys.argv[3], device="cpu", show=False, workers=1)
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    main()
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_ctrl_c_reaches_training_and_not_its_worker(method: str, small: Path, tmp_path: Path) -> None:
    "The signal goes to all processes of the group, as from a terminal; the worker goes on, training stops and saves."
    (tmp_path / "script.py").write_text(CTRL_C)
    command, one_thread = [sys.executable, "script.py", method, small, "run"], {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=one_thread, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    try:
        end = time.monotonic() + 240
        while len(read_metrics(tmp_path / "run") if (tmp_path / "run").exists() else ()) < 2:
            assert process.poll() is None and time.monotonic() < end, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and len(errors.strip().splitlines()) == 1, errors
    assert "isd_train: stopped at step" in errors and "go on with --resume" in errors
    assert load_checkpoint(tmp_path / "run" / "checkpoints")["step"] > 0


def claim(root: Path) -> str:
    with own_directory(None, QUICK, False, root) as place:
        (place / "config.json").touch()
    return place.name


def test_runs_that_begin_together_get_directories_of_their_own(tmp_path: Path) -> None:
    with get_context("fork").Pool(8) as pool:
        names = pool.map(claim, [tmp_path / "runs"] * 24, chunksize=1)
    assert sorted(names) == sorted(f"digits-isd-{i}" for i in range(1, 25))


def test_bad_input_leaves_no_directory(tmp_path: Path) -> None:
    for wrong in (("--set", "queue_size=8"), ("--method", "compress")):
        result = call(train_command, tmp_path, *TINY, *wrong, "--processes", "1")
        assert result.returncode == 2 and not list(tmp_path.iterdir()), result.stderr


def test_a_directory_in_which_a_run_was_killed_at_its_first_write_is_free(tmp_path: Path) -> None:
    for name in (".lock", ".config.json.7.unfinished"):
        (tmp_path / name).touch()
    open_run(tmp_path, QUICK, resume=True)
    assert (tmp_path / "config.json").is_file()


def test_a_console_that_cannot_show_a_letter() -> None:
    program = "from isd_nb.cli.options import console; console(lambda: print('runs/\u7ed3\u679c'))"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run_forked([sys.executable, "-c", program], env=ascii_only)
    assert (done.returncode, done.stdout.strip()) == (0, r"runs/\u7ed3\u679c"), done.stderr


@pytest.mark.usefixtures("small")
def test_figures_that_fail_do_not_cost_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError("a name with surrogates\nand more")
    monkeypatch.setattr("isd_nb.cli.train.draw_figures", fail)
    result = call(train_command, tmp_path, *SMALL, *TINY, "--processes", "1", "--no-supervised", "--out", "run")
    assert result.returncode == 0 and (tmp_path / "run" / "summary.json").is_file()
    assert "note: the figures could not be drawn (TypeError: a name with surrogates); everything else" in result.stderr


MINE = """
import os
from isd_nb.isd import ISD
calls = []
class Mine(ISD):
    def forward(self, view_q, view_k):
        calls.append(1)
        if os.environ.get("RANK") == "1" and len(calls) == int(os.environ.get("FAIL", 0)):
            raise ZeroDivisionError("a mistake in the second process")
        return super().forward(view_q, view_k)
"""


@pytest.mark.usefixtures("small")
def test_a_method_in_this_folder(tmp_path: Path) -> None:
    (tmp_path / "method_of_this_test.py").write_text(MINE)
    result = call(train_command, tmp_path, *SMALL, *TINY, "--processes", "1", "--no-supervised", "--no-figures",
                  "--out", "run", "--method", "method_of_this_test:Mine")
    assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("call", "code"), [(1, 2), (3, 1)], ids=["tried before the run", "in its second step"])
def test_why_a_companion_failed_is_said(call: int, code: int, tmp_path: Path) -> None:
    (tmp_path / "method_of_this_test.py").write_text(MINE)
    command = [sys.executable, "-m", "isd_nb.cli", *SMALL, *TINY, "--processes", "2", "--set", "batch_norm_splits=2",
               "--no-supervised", "--no-figures", "--method", "method_of_this_test:Mine", "--out", "run"]
    done = run_forked(command, cwd=tmp_path, env={**os.environ, "FAIL": str(call)}, deep=True)
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stderr.splitlines() if f"a companion process ended with exit code {code}" in line]
    assert said and "ZeroDivisionError: a mistake in the second process" in said[-1], done.stderr
    assert "see run/logs/process_1.log" in said[-1]
    assert ("Traceback" in (tmp_path / "run" / "logs" / "process_1.log").read_text()) == (code == 1)
    assert (tmp_path / "run" / "config.json").is_file() == (code == 1), "a run was begun by a method that fails"


def test_threads_are_fixed_kept_and_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    def stop(method: Method) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return {}
    recipe = replace(QUICK, steps=2, evaluations=1)  # few: threads that wait for each other use their cores
    with pytest.raises(Stopped):
        train(recipe, IMAGES, tmp_path / "run", stop, device="cpu", show=False, threads=2)
    trained = train(recipe, IMAGES, tmp_path / "run", resume=True, device="cpu", show=False)
    assert trained.threads == 2 and {row["threads"] for row in read_metrics(tmp_path / "run")} == {2}
    assert torch.get_num_threads() == before
    with pytest.raises(InputError, match="threads must be 1 or more"):
        train(QUICK, IMAGES, tmp_path / "other", device="cpu", show=False, threads=0)


def test_a_sweep_that_goes_on_after_errors_ends_at_ctrl_c(tmp_path: Path) -> None:
    def stop(method: Method) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return {}
    begun = []
    with pytest.raises(KeyboardInterrupt, match="stopped at step 1 of"):
        for seed in range(2):
            begun.append(seed)
            try:
                train(replace(QUICK, seed=seed), IMAGES, tmp_path / f"{seed}", stop, device="cpu", show=False)
            except Exception as error:
                print(error)
    assert begun == [0] and load_checkpoint(tmp_path / "0" / "checkpoints")["step"] == 1


def test_an_evaluation_that_is_stopped_leaves_what_was_learned(tmp_path: Path) -> None:
    def evaluate(method: Method) -> dict[str, float]:
        if next(calls):
            raise Stopped("stopped at step 3 of 9 with labels")  # as `fit_classifier` does
        return {}
    calls = iter(range(9))
    with pytest.raises(Stopped, match="with labels"):
        train(QUICK, IMAGES, tmp_path, evaluate, device="cpu", show=False)
    assert load_checkpoint(tmp_path / "checkpoints")["step"] >= 1


def test_building_leaves_all_generators_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr("torch.cuda.manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    build_method(QUICK, IMAGES)
    assert torch.equal(torch.get_rng_state(), before) and not seeded


@pytest.mark.usefixtures("small")
def test_a_guide_of_other_channels_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    grey = train(replace(QUICK, steps=1, evaluations=1), IMAGES, tmp_path / "grey", device="cpu", show=False)
    save_encoders(tmp_path / "grey" / "encoder.safetensors", grey.method, QUICK, IMAGES)
    result = call(train_command, tmp_path, *SMALL, *TINY, "--processes", "1", "--method", "compress", "--out", "run",
                  "--set", f'options={{"guide": "{tmp_path}/grey"}}')
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "images of 1 channels, these have 3" in result.stderr and not (tmp_path / "run").exists()


def test_no_run_of_several_processes_uses_what_is_deprecated() -> None:
    from isd_nb.engine.state import share_gradients

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        class Two:
            num_processes, device = 2, torch.device("cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = share_gradients(build_method(QUICK, IMAGES), Two())
        assert not model.forward_sync_buffers if hasattr(model, "forward_sync_buffers") else not model.broadcast_buffers
    finally:
        torch.distributed.destroy_process_group()


def ended(place: Path, command: Callable[[], None], *arguments: str | Path) -> tuple[int, str]:
    "Exit code and last line."
    result = call(command, place, *arguments)
    return result.returncode, result.stderr.strip().splitlines()[-1]


def test_sigterm_outside_of_the_steps_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def comes(*given: object, **more: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
    safety = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the signal ended the process"))
    try:
        for place in ("isd_nb.cli.train.read_sets", "isd_nb.cli.train.final_scores"):
            with monkeypatch.context() as patch:
                patch.setattr(place, comes)
                said = ended(tmp_path, train_command, "--data", "digits", "--out", place, "--recipe", "digits", *TINY,
                             "--no-supervised", "--no-figures", "--processes", "1")
            assert said == (143, "isd_train: stopped by SIGTERM; go on with --resume")
        monkeypatch.setattr("isd_nb.cli.evaluate.evaluate_run_by", comes)
        again = "finished rows are saved, and the same command goes on from there"
        assert ended(tmp_path, isd_eval, tmp_path) == (143, f"isd_eval: stopped by SIGTERM; {again}")
    finally:
        signal.signal(signal.SIGTERM, safety)


def test_what_cannot_be_resumed_does_not_advise_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: object, **more: object) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr("isd_nb.cli.explore.produce", interrupted)
    monkeypatch.setattr("isd_nb.cli.export.export_encoder", interrupted)
    method = train(QUICK, IMAGES, tmp_path, device="cpu", show=False).method
    save_encoders(tmp_path / "encoder.safetensors", method, QUICK, IMAGES)
    again = "stopped; the same command begins again"
    assert ended(tmp_path, isd_explore, tmp_path, "--html", "page.html") == (130, f"isd_explore: {again}")
    assert ended(tmp_path, isd_export, tmp_path, "--out", "net.pt") == (130, f"isd_export: {again}")


def test_a_run_that_is_moved_while_it_trains_can_go_on(tmp_path: Path) -> None:
    out, moved = tmp_path / "run", tmp_path / "elsewhere"

    def evaluate(method: Method) -> dict[str, float]:
        if next(calls) == 1:
            out.rename(moved)
        return {}
    calls = iter(range(9))
    with (pytest.raises(OSError, match="run is not there: moved or removed meanwhile"),
          pytest.warns(match="put this file into the checkpoints")):
        train(QUICK, IMAGES, out, evaluate, device="cpu", show=False)
    (state,) = (path for path in out.rglob("*") if path.is_file())  # and nothing else was made anew
    state.rename(moved / "checkpoints" / state.name)
    resumed = train(QUICK, IMAGES, moved, resume=True, device="cpu", show=False)
    steps = [row["step"] for row in read_metrics(moved)]
    assert (steps[:2], steps[-1], resumed.images_seen) == ([0, 1], 12, 12 * 16)


def test_a_run_without_checkpoints_loses_no_rows_silently(tmp_path: Path) -> None:
    train(QUICK, IMAGES, tmp_path, device="cpu", show=False)
    for path in (tmp_path / "checkpoints").glob("state_*.pt"):
        path.unlink()
    rows = read_metrics(tmp_path)
    with pytest.raises(InputError, match=r"has 13 rows, up to step 12 of 12, and its checkpoints .* are gone"):
        train(QUICK, IMAGES, tmp_path, resume=True, device="cpu", show=False)
    write_metrics(tmp_path, [*rows[:5], rows[5] | {"seconds": 1e4}])
    with pytest.raises(InputError, match=r"up to step 5 of 12, and its checkpoints .* are gone"):
        train(QUICK, IMAGES, tmp_path, resume=True, device="cpu", show=False)
    write_metrics(tmp_path, rows[:5])
    with pytest.warns(match=r"up to step 4 of 12, and no checkpoint yet .* begins again at step 0"):
        train(QUICK, IMAGES, tmp_path, resume=True, device="cpu", show=False)
    assert len(read_metrics(tmp_path)) == 13


def test_what_fails_while_something_fails_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"second could not be written \(Permission denied\)") as raised:
        try:
            with writing(tmp_path / "first"):
                raise PermissionError(13, "Permission denied")
        finally:
            with writing(tmp_path / "second"):
                raise PermissionError(13, "Permission denied")
    assert "first" not in str(raised.value)
