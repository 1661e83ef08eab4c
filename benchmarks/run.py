"""Run benchmarks in turn, print their tables, and save their numbers and pictures in results/bench.

    python benchmarks/run.py [NAME ...]     # by default all that run on a CPU and need no other images
    python benchmarks/run.py packed --data folder:PATH

Each runs with the command that its saved file names. A race begins anew beside its file, which it replaces when it is
complete; where its time is over, the same command goes on. One that fails does not keep the others from running; it is
named at the end.
"""
import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from plot import PLOTS

RACE = "race.py --steps 800 --every 40 --minutes 60"
NAMES = dict(
    views="views.py", loss="loss.py", knn="knn.py", step="step.py", step_blur="step.py --blur", tuned="tuned.py",
    race=RACE, race_busy=f"{RACE} --neighbours 1", threads="threads.py", parts="parts.py", scaling="scaling.py",
    equivalence="equivalence.py --images 300000", explorer="explorer.py --repeats 2", controls="controls.py",
    pages="pages.py --rounds 1")
ONLY_BY_NAME = dict(  # for a GPU, of other images, or shown on other pages
    gpu="gpu.py", race_cifar10=f"{RACE} --data cifar10", embedding="embedding.py",
    equivalence_loss="equivalence.py --recipe cifar10_small --data folder:cifar10 --forms fast exact_loss",
    equivalence_loss_digits="equivalence.py --images 187000 --forms fast exact_loss",
    evaluation="evaluation.py --data SPEC --rounds 3 --steps 100 --threads 1",
    packed="packed.py --data SPEC --images 3000 --rounds 3 --processes 1 2",
    pretrained="pretrained.py --weights efficientnet-lite0-57934424.pth --data folder:PATH --size 64 --steps 100 "
               "--rates 0.003,0.03")
COMMANDS = NAMES | ONLY_BY_NAME
ROOT = Path(__file__).parent.parent


def command_of(name: str, data: str | None) -> list[str]:
    "The script and its options, as saved; `data` takes the place of images that only the machine of the file had."
    words = shlex.split(COMMANDS[name])
    if "--data" in words and words[place := words.index("--data") + 1] in ("SPEC", "folder:PATH"):
        words[place] = data or words[place]
    target = "--out" if name in ("embedding", "pretrained") else "--json"
    anew = ["--anew"] if words[0] == "race.py" else []
    return [f"benchmarks/{words[0]}", *words[1:], *anew, target, f"results/bench/{name}.json"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(NAMES), metavar="NAME", help=", ".join(COMMANDS))
    parser.add_argument("--data", help="images for evaluation, packed and pretrained, as isd_train takes them")
    given = parser.parse_args()
    if unknown := set(given.names) - set(COMMANDS):
        sys.exit(f"unknown benchmark {', '.join(sorted(unknown))}; known: {', '.join(COMMANDS)}")
    (ROOT / "results" / "bench").mkdir(parents=True, exist_ok=True)
    failed = []
    for name in given.names:
        print(f"== {name}", flush=True)
        measure = command_of(name, given.data)
        if {"SPEC", "folder:PATH"} & set(measure):
            failed.append(f"{name} (it needs --data)")
            continue
        for command in (measure, ["benchmarks/plot.py", name])[:1 + (name in PLOTS)]:
            if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
                failed.append(name)
                break
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}; all others are in results/bench")


if __name__ == "__main__":
    main()
