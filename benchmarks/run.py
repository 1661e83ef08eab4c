"""Run benchmarks in turn, print their tables, and save their numbers and pictures in results/bench.

    python benchmarks/run.py [NAME ...]      # by default all that run on a CPU
"""
import subprocess
import sys
from pathlib import Path

NAMES = ("views", "loss", "knn", "step", "step_blur", "tuned", "race", "race_busy", "threads", "parts", "scaling",
         "equivalence", "explorer", "controls", "pages")
OPTIONS = {"step_blur": ["benchmarks/step.py", "--blur"],
           "race_busy": ["benchmarks/race.py", "--neighbours", "1"]}  # of names that are not a script's
ROOT = Path(__file__).parent.parent


def main() -> None:
    names = sys.argv[1:] or NAMES
    if unknown := set(names) - {*NAMES, "gpu"}:
        sys.exit(f"unknown benchmark {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}, gpu")
    (ROOT / "results" / "bench").mkdir(parents=True, exist_ok=True)
    for name in names:
        print(f"== {name}", flush=True)
        measure = [*OPTIONS.get(name, [f"benchmarks/{name}.py"]), "--json", f"results/bench/{name}.json"]
        for command in (measure, ["benchmarks/plot.py", name]):
            subprocess.run([sys.executable, *command], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
