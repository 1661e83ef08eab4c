"""How long are the start page and the lessons? Seconds from Run All Cells to the last output, in a new kernel.

    python benchmarks/pages.py [--json FILE] [--folders . 1_isd] [--rounds 3]

Each page runs as JupyterLab runs it, with one thread for its products. Medians over rounds, in which the pages take
turns. The processor time is the kernel's and that of the processes it starts. The goals: 45 s for the training of the
start page, 60 s for a lesson, on two cores without neighbours.
"""
import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path

import nbformat
import torch
from common import about
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "nbs"
USED = """
import resource as _r
print("used", sum(u.ru_utime + u.ru_stime for u in map(_r.getrusage, (_r.RUSAGE_SELF, _r.RUSAGE_CHILDREN))))
"""
LIVE = "live = display("  # what the cell of the start page holds that trains while one looks on


def run(page: Path) -> dict[str, float]:
    "Seconds of a page, of its processor time, and of the training that is watched, where there is one."
    notebook = nbformat.read(page, as_version=4)
    last = nbformat.v4.new_code_cell(USED)
    notebook.cells.append(last)
    begun: dict[int, float] = {}
    ended: dict[int, float] = {}
    client = NotebookClient(notebook, timeout=None, resources=dict(metadata=dict(path=str(page.parent))),
                            on_cell_execute=lambda cell, cell_index: begun.setdefault(cell_index, time.perf_counter()),
                            on_cell_executed=lambda cell, cell_index, execute_reply: ended.setdefault(
                                cell_index, time.perf_counter()))
    start = time.perf_counter()
    client.execute()
    found = dict(seconds=time.perf_counter() - start)
    printed = "".join(output.text for output in last.outputs if output.output_type == "stream")
    found["processor_seconds"] = float(printed.partition("used ")[2])
    if page.stem == "index":
        live = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and LIVE in cell.source)
        found["live_seconds"] = ended[live] - begun[live]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--folders", nargs="+", default=[".", "1_isd"], help="folders of nbs, . for the start page")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)  # stated with the results; kernels get it from their environment
    os.environ |= dict(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", MPLBACKEND="module://matplotlib_inline.backend_inline")
    pages = [page for folder in args.folders for page in sorted((NOTEBOOKS / folder).glob("*.ipynb"))
             if page.stem != "notation"]
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(args.rounds):
        for page in pages:
            rows[str(page.relative_to(NOTEBOOKS).with_suffix(""))].append(run(page))
    found = {name: {key: round(statistics.median(row[key] for row in taken), 1) for key in taken[0]}
             for name, taken in rows.items()}
    for name, row in found.items():
        print(f"{name:32}" + ", ".join(f"{key.replace('_', ' ')} {value:5.1f}" for key, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps(about("pages", rounds=args.rounds, pages=found), indent=1) + "\n")


if __name__ == "__main__":
    main()
