"""`make test` on several Pythons, each in an environment of its own; the last results stand in CONTRIBUTING.md.

    python tests/pythons.py python3.10 python3.11 python3.12    one after the other (each half an hour, and 7 GB)
    python tests/pythons.py                                     the table from what is saved

Every result is saved as it comes, in results/pythons.json; a Python that is given again replaces its own.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SAVED, PAGE = ROOT / "results" / "pythons.json", ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- pythons -->", "<!-- /pythons -->"
ABOUT = """import json, platform, torch
from isd_nb.kernels.devices import machine
print(json.dumps(dict(python=platform.python_version(), torch=torch.__version__, machine=machine())))"""


def read() -> dict[str, dict[str, Any]]:
    "What is saved, by version."
    return json.loads(SAVED.read_text()) if SAVED.exists() else {}


def counts(printed: str) -> dict[str, int]:  # of the runner's last line
    "How many tests passed, failed and were skipped."
    lines = [line for line in printed.splitlines() if re.search(r"\b(passed|failed)\b.* in \d", line)]
    found = re.findall(r"(\d+) (passed|failed|skipped|errors?)", "".join(lines[-1:]))
    return {what: int(number) for number, what in found}


def state() -> str:
    "The commit, and whether anything was changed since."
    def printed(*command: str) -> str:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    changes = printed("status", "--porcelain", "-uno")
    return printed("rev-parse", "--short", "HEAD") + (" and changes" if changes else "")


def tried(python: str) -> dict[str, Any]:
    "One Python: how `make test` ended, and with what it ran."
    command, begun, commit = ["make", "test", f"PYTHON={python}"], time.monotonic(), state()
    printed = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            printed.append(line)
    inside = ROOT / f".venv{'' if python == 'python3' else f'-{Path(python).name}'}" / "bin" / "python"
    about = subprocess.run([inside, "-c", ABOUT], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    minutes = round((time.monotonic() - begun) / 60, 1)
    return dict(json.loads(about), command=" ".join(command), passes=process.returncode == 0,
                tests=counts("".join(printed)), minutes=minutes, commit=commit, date=time.strftime("%Y-%m-%d"))


def table(saved: Mapping[str, Mapping[str, Any]]) -> str:
    "The results in Markdown, the oldest Python first."
    lines = ["| Python | torch | `make test` | tests | commit, date |", "|---|---|---|---|---|"]
    for _, one in sorted(saved.items(), key=lambda item: [int(part) for part in item[0].split(".")]):
        tests = ", ".join(f"{number:,} {what}" for what, number in one["tests"].items())
        how = f"{'passes' if one['passes'] else 'fails'}, {one['minutes']:.0f} min"
        cells = one["python"], one["torch"], how, tests, f"{one['commit']}, {one['date']}"
        lines.append(f"| {' | '.join(cells)} |")
    machines = ", ".join(sorted({one["machine"].partition(", torch")[0] for one in saved.values()}))
    return "\n".join([*lines, "", f"With environments made first, on {machines}."])


def written(page: str, saved: Mapping[str, Mapping[str, Any]]) -> str:
    "The page with today's table."
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(saved) if saved else 'Not yet.'}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="as `make test PYTHON=...` has it")
    asked = parser.parse_args()
    saved = read()
    for python in asked.pythons:
        subprocess.run(["make", f".venv-{Path(python).name}/ready" if python != "python3" else ".venv/ready",
                        f"PYTHON={python}"], cwd=ROOT, check=True)
        one = tried(python)
        saved[".".join(one["python"].split(".")[:2])] = one
        beside = SAVED.with_suffix(".part")
        beside.write_text(json.dumps(saved, indent=1) + "\n")
        os.replace(beside, SAVED)
    PAGE.write_text(written(PAGE.read_text(), saved))
    print(table(saved))
    return 0 if all(one["passes"] for one in saved.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
