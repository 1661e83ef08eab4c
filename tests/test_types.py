"""Types of the package; mypy.ini states how much is checked."""
import subprocess
import sys
from pathlib import Path


def test_types_of_the_package() -> None:
    mypy = [sys.executable, "-m", "mypy"]
    done = subprocess.run(mypy, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
