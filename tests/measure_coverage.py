"""Which lines of `isd_nb` no notebook and no test runs, subprocesses included: `make coverage`.

    python tests/measure_coverage.py                                  all notebooks and tests (half an hour)
    python tests/measure_coverage.py --tests tests/test_teacher.py    a few of them, for a look at one module
    python tests/measure_coverage.py --report                         the report again

It fails below 95%, and where a module has lines that are not run without a reason in `REASONS`. The result of a run of
all is kept in results/coverage.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isd_nb.kernels.devices import machine
from pythons import state

ROOT = Path(__file__).parents[1]
DATA, SAVED = ROOT / ".coverage", ROOT / "results" / "coverage.json"
LOWEST = 95.0  # per cent
REASONS = {  # parts that need what this machine may lack
    "isd_nb/kernels/triton_attention.py": "Triton's interpreter or compiler runs the kernel; choosing it takes a GPU",
    "isd_nb/kernels/devices.py": "devices with CUDA",
    "isd_nb/engine/state.py": "CUDA: memory statistics, kernels picked by timing",
    "isd_nb/engine/scale.py": "compilation on CUDA, C libraries other than glibc",
    "isd_nb/sources/torchvision_sets.py": "downloads",
    "isd_nb/errors.py": "file systems without locks, Windows",
}
SETTINGS = f"""[run]
source = {ROOT / "isd_nb"}
branch = False
parallel = True
data_file = {DATA}
concurrency = multiprocessing, thread
sigterm = True
patch = subprocess
disable_warnings = no-data-collected
omit = */_modidx.py
[report]
show_missing = True
skip_covered = True
"""


def summary(report: Mapping[str, Any]) -> dict[str, Any]:  # of `coverage json`
    "The share of lines that were run, and by module the lines that were not, with the reason."
    modules = {
        name: dict(missing=file["missing_lines"], reason=REASONS.get(name, ""))
        for name, file in sorted(report["files"].items())
        if file["missing_lines"]
    }
    totals = report["totals"]
    return dict(percent=round(totals["percent_covered"], 2), lines=totals["num_statements"], modules=modules)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", nargs="*", default=["tests"])
    parser.add_argument("--workers", type=int, default=(os.cpu_count() or 1) + 1)
    parser.add_argument("--report", action="store_true", help="of the last run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config, found = Path(folder) / "coveragerc", Path(folder) / "coverage.json"
        config.write_text(SETTINGS)
        own = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MPLBACKEND": "Agg", "TMPDIR": folder}
        env = {**os.environ, **own, "COVERAGE_RCFILE": str(config)}

        def cover(*arguments: str | Path) -> int:
            return subprocess.run([sys.executable, "-m", "coverage", *arguments], cwd=ROOT, env=env).returncode

        begun, passed = time.monotonic(), True
        if not options.report:
            for old in ROOT.glob(".coverage*"):
                old.unlink()
            workers = ["-n", str(options.workers), "--no-loadscope-reorder"]
            passed = not cover("run", "--rcfile", config, "-m", "pytest", "-q", *workers, *options.tests)
            cover("combine", "--rcfile", config)
        cover("report", "--rcfile", config)
        cover("json", "-q", "--rcfile", config, "-o", found)
        result = summary(json.loads(found.read_text()))
    for name, module in result["modules"].items():
        print(f"  {name}: {module['reason'] or 'NO REASON'}")
    if not options.report and options.tests == ["tests"]:
        made = dict(command="make coverage", machine=machine(), commit=state(), tests_passed=passed,
                    minutes=round((time.monotonic() - begun) / 60, 1))
        SAVED.write_text(json.dumps({**made, **result}, indent=1) + "\n")
    print(f"{result['percent']:.2f}% of {result['lines']:,} lines are run")
    reasoned = all(module["reason"] for module in result["modules"].values())
    return 0 if passed and reasoned and result["percent"] >= LOWEST else 1


if __name__ == "__main__":
    raise SystemExit(main())
