"""Which lines of `isd_nb` no notebook and no test runs, subprocesses included: `make coverage`.

    python tests/measure_coverage.py                                  all notebooks and tests (half an hour and more)
    python tests/measure_coverage.py --tests tests/test_teacher.py    a few of them, for a look at one module
    python tests/measure_coverage.py --report                         the report again

It fails below 95%. `REASONS` says of the rest why it is not run here.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = ROOT / ".coverage"
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", nargs="*", default=["tests"])
    parser.add_argument("--report", action="store_true", help="of the last run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "coveragerc"
        config.write_text(SETTINGS)
        cover, env = (
            [sys.executable, "-m", "coverage"],
            {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MPLBACKEND": "Agg",
                "COVERAGE_RCFILE": str(config),
                "TMPDIR": folder,
            },
        )
        if not options.report:
            for old in ROOT.glob(".coverage*"):
                old.unlink()
            run = [*cover, "run", "--rcfile", config]
            subprocess.run([*run, "-m", "pytest", "-q", "-p", "no:xdist", *options.tests], cwd=ROOT, env=env)
            subprocess.run([*cover, "combine", "--rcfile", config], cwd=ROOT, env=env)
        done = subprocess.run([*cover, "report", "--rcfile", config, "--fail-under", "95"], cwd=ROOT, env=env)
    print("\nWhy some of these are not run here:", *(f"  {name}: {why}" for name, why in REASONS.items()), sep="\n")
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
