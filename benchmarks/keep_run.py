"""Keep what a finished run of `isd_train` reports: its summary, its command and its learning curve, in one file.

    python benchmarks/keep_run.py RUN results/digits-0.json --command 'isd_train --threads 1 --processes 1'

README's first tables and its figure are made from these files (`python benchmarks/readme.py`).
"""

import argparse
import json
from pathlib import Path

from experiment import keep
from isd_nb.engine.launch import one_sentence
from isd_nb.engine.runs import read_metrics
from isd_nb.errors import InputError


def kept(run: Path, command: str) -> dict:
    "The summary, the command and the evaluated rows."
    path = run / "summary.json"
    if not path.is_file():
        raise InputError(f"{run} has no summary.json: it is no finished run of isd_train")
    rows = [row for row in read_metrics(run) if any(name.startswith("knn20") for name in row)]
    curve = [{k: v for k, v in row.items() if k == "images_seen" or k.startswith("knn20_")} for row in rows]
    return json.loads(path.read_text()) | dict(command=command, curve=curve)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--command", required=True, help="with which the run was made")
    given = parser.parse_args()
    keep(given.file, kept(given.run, given.command))


if __name__ == "__main__":
    with one_sentence("keep_run.py"):
        main()
