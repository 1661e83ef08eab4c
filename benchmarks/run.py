"""Run every benchmark in turn, print their tables and save their numbers beside the scripts.

    python benchmarks/run.py [NAME ...]      # views, loss, knn, step; by default all
"""
import subprocess
import sys
from pathlib import Path

NAMES = ("views", "loss", "knn", "step")


def main() -> None:
    names = sys.argv[1:] or NAMES
    if unknown := set(names) - set(NAMES):
        sys.exit(f"unknown benchmark {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    for name in names:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, f"benchmarks/{name}.py", "--json", f"benchmarks/{name}.json"], check=True,
                       cwd=Path(__file__).parent.parent)


if __name__ == "__main__":
    main()
