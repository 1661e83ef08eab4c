"""What the benchmarks share: how a machine is described."""
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch


def processor() -> str:
    "The processor's name, where the system tells it."
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def about(script: str, **settings: Any) -> dict[str, Any]:
    "The command, the machine and the settings: what somebody needs to repeat the numbers."
    found = dict(command=shlex.join(["python", f"benchmarks/{script}.py", *sys.argv[1:]]), processor=processor(),
                 cores=os.cpu_count(), threads=torch.get_num_threads(), torch=torch.__version__, **settings)
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    if hasattr(os, "getloadavg"):
        found["load_before"] = round(LOAD, 1)
    return found


LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # what else was running when the script began
