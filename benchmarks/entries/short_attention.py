"""Attention of streams that are too short for anyone to win much: where ours begins to be faster.

``dispatch`` lets ``auto`` take the C++ kernels from that length on, and a test holds it to this
record.
"""

from collections.abc import Iterator

import torch

from benchmarks.case import Case, Scope
from benchmarks.entries.attention import Problem, both_modes

ROWS = (4, 8, 16, 24, 32, 48, 64, 128, 256)


def cases(scope: Scope) -> Iterator[Case]:
    """One and two streams, batch 1 and 8."""
    lengths, batches = ((5,), (1,)) if scope.smoke else (ROWS, (1, 8))
    for dtype in (torch.bfloat16, torch.float32):
        for streams in (1, 2):
            for batch in batches:
                for rows in lengths:
                    problem = Problem("short", (rows,) * streams, batch, dtype, threads=2)
                    yield from both_modes(problem, scope)
