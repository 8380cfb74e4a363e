"""An allocator that keeps what is freed, tried in processes of their own."""

import subprocess
import sys

import pytest

from benchmarks.allocator import IS_GLIBC

FAULTS_OF_THE_LAST_OF_TWENTY = """
import resource
import torch
from benchmarks.allocator import keep_freed_memory

if {keep}:
    keep_freed_memory()
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20, dtype=torch.uint8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    program = FAULTS_OF_THE_LAST_OF_TWENTY.format(keep=keep)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not IS_GLIBC, reason="only glibc's allocator has these options")
def test_no_call_faults_for_memory_that_another_has_freed():
    assert faults(keep=True) < 10 < faults(keep=False)
