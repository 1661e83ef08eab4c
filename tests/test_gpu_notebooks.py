"""The notebooks for GPUs at toy size: they run, go on, take other settings; and the scripts start what they say."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import SMALL, TINY, call
from launching import QUICK, run_forked

from isd_nb.cli.train import isd_train
from isd_nb.engine.finish import score_table
from isd_nb.engine.launch import free_port
from isd_nb.explore.gpu_notebooks import commands, settle
from isd_nb.recipe import recipes
from isd_nb.methods.building import methods

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs" / "gpu").glob("*.ipynb") if not p.stem.startswith("00"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "ISD_NB_TOY": "1",
               "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def cells_of(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def settings_of(path: Path) -> str:
    (cell,) = [c for c in cells_of(path) if "parameters" in c["metadata"].get("tags", [])]
    return "".join(cell["source"])


def run(path: Path, settings: str, at: Path, without: tuple[str, ...]) -> str:  # what it printed
    "Execute a notebook's code as one script, with other settings put after its own, as papermill does."
    code = []
    for cell in cells_of(path):
        if cell["cell_type"] == "code" and not "".join(cell["source"]).startswith(without):
            code.append("".join(cell["source"]))
            code += [settings] if "parameters" in cell["metadata"].get("tags", []) else []
    code.append('import shutil\nshutil.copy(out / "config.json", ".")')
    script = at / "notebook.py"
    text = "\n".join(code).replace("../../results", str(ROOT / "results"))
    script.write_text('if __name__ == "__main__":\n' + textwrap.indent(text, "    "))
    result = run_forked([sys.executable, script], cwd=at, env={**ENVIRONMENT, QUICK: "1"}, timeout=1200)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_settings_stand_in_one_cell(path: Path) -> None:
    names: dict = {"is_toy": lambda: True}
    exec(settings_of(path), names)  # plain values, that papermill can replace
    kinds = {"any_set": ("cifar100", "stl10", "tiny_imagenet", "imagenet100")}.get(path.stem, (path.stem,))
    assert names["recipe_name"] in recipes and names["recipe_name"] in kinds and names["method"] in methods
    for kind in [f"{name}{ending}" for name in kinds for ending in ("", "_authors")]:
        assert settle(kind, "isd").epochs == 200


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_were_run_and_show_a_cpu_run_that_learns(path: Path) -> None:
    "Without a GPU the page shows the saved run, up to date and marked as a CPU's, and not the toy's scores."
    saved = json.loads((ROOT / "results" / "cifar10_small-0.json").read_text())
    outputs = [o for c in cells_of(path) for o in c.get("outputs", [])]
    printed = "".join("".join(o.get("text", "")) for o in outputs)
    assert "torchrun" in printed and "sbatch" in printed and score_table(saved) in printed, "execute it again"
    assert printed.count("20-NN") == 1 and "run of a CPU" in printed and saved["command"] in printed
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
    assert saved["knn20_teacher"] > max(saved["knn20_pixels"], saved["knn20_untrained"])


def test_other_settings_and_the_authors_recipe(tmp_path: Path) -> None:
    "MoCo by the authors' settings, on a folder, through the notebook of ImageNet."
    path = ROOT / "nbs" / "gpu" / "imagenet.ipynb"
    slow = ("print(cost_table(", "near, atlas = draw(")  # nothing that follows needs them
    printed = run(path, 'recipe_name, method = "imagenet_authors", "moco_v2"\nteraflops = 1.0', tmp_path, slow)
    assert "--recipe imagenet_authors --method moco_v2" in printed and "teacher" in printed
    recipe = json.loads((tmp_path / "config.json").read_text())["recipe"]
    assert (recipe["name"], recipe["method"]) == ("imagenet_authors_toy", "moco_v2")


def test_commands_are_those_of_the_command_line(tmp_path: Path) -> None:
    "The arguments that are printed are understood, up to the missing images."
    line = commands("imagenet", "isd", "runs/x").splitlines()[1].split()[1:]
    result = call(isd_train, tmp_path, *line)
    assert result.returncode == 2 and "data/imagenet is not a folder" in result.stderr


def nodes(rank: int, count: int, port: int, at: Path, *more: str | Path) -> subprocess.Popen:
    environment = {**ENVIRONMENT, "MAIN": "127.0.0.1", "RANK": str(rank), "NODES": str(count), "GPUS": "1",
                   "PORT": str(port)}
    command = [str(ROOT / "scripts" / "train_nodes.sh"), "--out", "run", "--no-figures", *TINY, *SMALL, *more]
    return subprocess.Popen(command, cwd=at, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(machine: subprocess.Popen) -> None:
    "What is still running is asked first: torchrun ends its own processes, which a kill would leave behind."
    machine.terminate()
    try:
        machine.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        machine.kill()
        machine.communicate()


@pytest.mark.usefixtures("small")
def test_two_machines(tmp_path: Path) -> None:
    "The script for several machines, with both of them here; the command trains and scores in two processes."
    port, few = free_port(), ("--no-supervised", "--set", "evaluations=1")
    machines, printed = [nodes(rank, 2, port, tmp_path, *few) for rank in range(2)], ""
    try:
        for machine in machines:
            said, errors = machine.communicate(timeout=240)
            assert machine.returncode == 0, errors[-2000:]
            printed += said
    finally:
        for machine in machines:
            if machine.poll() is None:
                end(machine)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images_seen"] == 12 * 16 and "knn20_teacher" in summary
    assert summary["command"].startswith("isd_train --out run ")
    assert printed.count("Next:") == 1  # one process reports


@pytest.mark.usefixtures("small")
def test_a_machine_that_is_stopped_saves(tmp_path: Path) -> None:
    process = nodes(0, 1, free_port(), tmp_path, "--steps", "100000")
    try:
        latest = time.monotonic() + 240
        while not (tmp_path / "run" / "metrics.csv").exists():
            assert process.poll() is None and time.monotonic() < latest
            time.sleep(0.05)
    finally:
        end(process)
    assert process.returncode != 0 and list((tmp_path / "run" / "checkpoints").glob("state_*.pt"))


@pytest.mark.parametrize("script", ["train.slurm", "train_nodes.sh", "train_gpus.sh"])
def test_scripts_are_bash(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "scripts" / script)], check=True)
    assert os.access(ROOT / "scripts" / script, os.X_OK)


def stub(place: Path, name: str, text: str) -> None:
    "A program of this name, which is found before all others."
    place.mkdir(exist_ok=True)
    (place / name).write_text(f"#!/bin/bash\n{text}\n")
    (place / name).chmod(0o755)


def held_arguments(script: str, at: Path, *arguments: str, **variables: str) -> list[str]:
    "What a script passes to Python in the end; the machine has three GPUs."
    stub(at / "bin", "python", f'if [ "$1" = -c ]; then echo 3; else printf "%s\\n" "$@" > "{at}/held"; '
         f'echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" > "{at}/patience"; fi')
    plain = {"PATH": f"{at / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([ROOT / "scripts" / script, *arguments], cwd=at, env=plain | variables,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (at / "held").read_text().splitlines()


RESUMED = ("--recipe", "cifar10", "--out", "my runs/x", "--resume")  # a name with a blank stays one argument


def test_all_gpus_of_a_machine_train(tmp_path: Path) -> None:
    held = held_arguments("train_gpus.sh", tmp_path, *RESUMED, PORT="1234", RANK="7")
    launcher = ["--nnodes=1", "--node_rank=0", "--nproc_per_node=3", "--master_addr=127.0.0.1", "--master_port=1234"]
    assert held == ["-m", "torch.distributed.run", *launcher, "-m", "isd_nb.cli", *RESUMED]
    assert (tmp_path / "patience").read_text() == "240\n"  # seconds for the last steps and a checkpoint


def test_slurm_starts_every_machine(tmp_path: Path) -> None:
    stub(tmp_path / "bin", "scontrol", 'printf "%s\\n" first second')
    stub(tmp_path / "bin", "srun", 'shift; exec "$@"')  # what the first of the tasks does
    job = dict(SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_NODELIST="n[1-2]", SLURM_JOB_NUM_NODES="2", SLURM_JOB_ID="20007",
               SLURM_NODEID="1", SLURM_GPUS_ON_NODE="4")
    launcher = ["--nnodes=2", "--node_rank=1", "--nproc_per_node=4", "--master_addr=first", "--master_port=20007"]
    assert held_arguments("train.slurm", tmp_path, *RESUMED, **job) == [
        "-m", "torch.distributed.run", *launcher, "-m", "isd_nb.cli", *RESUMED]
    anew = subprocess.run([ROOT / "scripts/train.slurm", *RESUMED[:-1]], env={"PATH": os.environ["PATH"], **job},
                          capture_output=True, text=True)
    assert anew.returncode == 2 and "give --resume" in anew.stderr


def test_slurm_stops_the_tasks_and_not_their_launcher(tmp_path: Path) -> None:
    "A signal to srun kills the tasks before they have saved."
    stub(tmp_path / "bin", "srun", f"trap 'echo saved >> {tmp_path}/said; exit 143' USR2\n"
         f"trap 'echo killed >> {tmp_path}/said; exit 137' TERM\n"
         f"echo $$ > {tmp_path}/new\nmv {tmp_path}/new {tmp_path}/step\nwhile :; do sleep 0.05; done")
    stub(tmp_path / "bin", "scancel", f'echo "scancel $*" >> {tmp_path}/said; kill -USR2 $(cat {tmp_path}/step)')
    stub(tmp_path / "bin", "scontrol", f'if [ $1 = show ]; then echo first; else echo "$*" >> {tmp_path}/said; fi')
    job = dict(SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_NODELIST="first", SLURM_JOB_NUM_NODES="1", SLURM_JOB_ID="20007")
    script = subprocess.Popen([ROOT / "scripts/train.slurm", *RESUMED], stdout=subprocess.DEVNULL,
                              env=job | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    try:
        latest = time.monotonic() + 60
        while not (tmp_path / "step").exists():
            assert script.poll() is None and time.monotonic() < latest
            time.sleep(0.05)
        script.send_signal(signal.SIGUSR1)
        assert script.wait(60) == 0
    finally:
        script.kill()
        with suppress(ProcessLookupError):
            os.kill(int((tmp_path / "step").read_text()), signal.SIGKILL)
    assert (tmp_path / "said").read_text().splitlines() == ["scancel --signal=TERM 20007.0", "saved", "requeue 20007"]
