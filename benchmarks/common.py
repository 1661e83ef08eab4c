"""What the benchmarks share: how a machine is described."""
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import isd_nb
from isd_nb.kernels.devices import has_bfloat16

ROOT = Path(__file__).parent.parent


def processor() -> str:
    "The processor's name, where the system tells it."
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def instructions() -> str:
    "What the processor computes with: two of one name may differ in it."
    return torch.backends.cpu.get_cpu_capability() + (" with bfloat16" if has_bfloat16("cpu") else "")


def commit(root: Path = ROOT, code: Path = Path(isd_nb.__file__).parent) -> str | None:
    "The commit of the code, with + where package or benchmarks differ; None: no clone, another package ran, or no git."
    if not (root / ".git").exists() or code.resolve() != (root / "isd_nb").resolve():
        return None
    asked = ["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", "isd_nb", "benchmarks"]
    try:
        name, changed = (subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout
                         for words in asked)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.strip() + "+" * bool(changed)


def about(script: str, **settings: Any) -> dict[str, Any]:
    "The command, the machine and the settings: what is needed to repeat the numbers."
    found = dict(command=shlex.join(["python", f"benchmarks/{script}.py", *sys.argv[1:]]), processor=processor(),
                 instructions=instructions(), cores=os.cpu_count(), threads=torch.get_num_threads(),
                 torch=torch.__version__, **settings)
    if COMMIT:
        found["commit"] = COMMIT
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    if hasattr(os, "getloadavg"):
        found["load_before"] = round(LOAD, 1)
    return found


COMMIT = commit()  # when the script began, as the next
LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # what else was running when the script began
