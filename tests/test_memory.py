"""That memory which a step frees is kept for the next, counted in a process of its own."""
import json
import resource
import sys

import pytest
from launching import run_forked

COUNT = """
import json, resource, sys
import torch
from isd_nb.engine.scale import keep_freed_memory

def faults(count):
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.ReLU())
    for step in range(count + 5):
        if step == 5:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        layers(torch.rand(256, 3, 32, 32)).square().mean().backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / count

can = keep_freed_memory(128 << 10)
usual = faults(4)
keep_freed_memory()
print(json.dumps([can, usual, faults(4)]))
"""


def test_a_step_reuses_the_memory_of_the_last() -> None:
    done = run_forked([sys.executable, "-c", COUNT])
    assert done.returncode == 0, done.stderr
    can, usual, kept = json.loads(done.stdout)
    if not can:
        pytest.skip("this C library has no mallopt: nothing is kept, and nothing is claimed")
    assert usual > 5000 * 4096 / resource.getpagesize() and kept < usual / 10  # pages, of 4,096 bytes or larger
