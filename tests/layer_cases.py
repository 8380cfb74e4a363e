"""Calls of the layer ops that the tests share, and what LayerNorm means, stated independently."""

from typing import NamedTuple

import pytest
import torch

from mbt_fast import native

# Every instruction set of this machine, chosen as a user would, by MBT_FAST_CPU.
INSTRUCTION_SETS = [] if native.why_no_cpu_kernels() else native.module().instruction_sets()
BACKENDS = ["reference", *(["cpu"] if INSTRUCTION_SETS else [])]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

needs_kernels = pytest.mark.skipif(
    not INSTRUCTION_SETS, reason=f"no CPU kernels: {'; '.join(native.why_no_cpu_kernels())}"
)
backends = pytest.mark.parametrize("backend", BACKENDS)
approximations = pytest.mark.parametrize("approximate", ["tanh", "none"])


class Case(NamedTuple):
    batch: int
    rows: tuple[int, ...]  # of each stream, slots included
    channels: int
    slots: int = 0
    branches: tuple[bool, ...] = (True, True, True)  # which streams have one
    lengths: tuple[tuple[int, ...] | None, ...] | None = None  # per stream, per example


CASES = {
    "two-streams": Case(2, (9, 6), 48, 3),
    "no-slots": Case(2, (9, 6), 48),
    "no-branch": Case(2, (9, 6), 48, branches=(False, False, False)),
    "branch-of-one": Case(1, (5, 7), 33, 2, branches=(True, False, True)),
    "three-streams": Case(1, (4, 5, 6), 20, 2),
    "one-stream": Case(3, (5,), 16, 2),
    "one-channel": Case(2, (3, 4), 1, 1),  # the variance is 0
    "tails": Case(1, (3, 2), 7 * 16 + 5),  # more than one round of the sums, and a tail
    "many-chunks": Case(2, (700, 3), 65, 2),  # gradients of weights add up over chunks
    "only-slots": Case(2, (2, 4), 16, 2),
    "absent-stream": Case(3, (6, 5), 24, 2, lengths=((0, 4, 2), (3, 0, 1))),
    "absent-without-branch": Case(2, (6, 5), 24, 2, (False, False, False), ((0, 4), None)),
    "all-absent": Case(2, (4, 3), 16, 2, lengths=((0, 2), (0, 1))),
    "no-rows": Case(2, (0, 3), 16),
    "no-batch": Case(0, (4, 3), 16, 2),
}


def make(case, dtype=torch.float32):
    """Streams, branches, weights and biases."""
    streams, branches = (
        [torch.randn(case.batch, rows, case.channels).to(dtype) for rows in case.rows]
        for _ in range(2)
    )
    branches = [b if has else None for b, has in zip(branches, case.branches, strict=False)]
    weights, biases = ([torch.randn(case.channels).to(dtype) for _ in case.rows] for _ in range(2))
    return streams, branches, weights, biases


def make_lengths(case):
    if case.lengths is None:
        return None
    return [None if n is None else torch.tensor(n, dtype=torch.int32) for n in case.lengths]


def stated_independently(case, streams, branches, weights, biases, eps):
    """Row by row, in float64, without any of the library's code or torch's LayerNorm."""
    sums = [
        stream.double() if branch is None else stream.double() + branch.double()
        for stream, branch in zip(streams, branches, strict=True)
    ]
    for b in range(case.batch if case.slots else 0):
        here = [
            m for m in range(len(sums))
            if case.lengths is None or case.lengths[m] is None or case.lengths[m][b] > 0
        ]  # fmt: skip
        mean = sum(sums[m][b, -case.slots :].clone() for m in here) / max(len(here), 1)
        for m, total in enumerate(sums):
            total[b, -case.slots :] = mean if m in here else 0
    normed = []
    for total, weight, bias in zip(sums, weights, biases, strict=True):
        deviation = total - total.mean(-1, keepdim=True)
        variance = (deviation**2).mean(-1, keepdim=True)
        normed.append(deviation / (variance + eps).sqrt() * weight.double() + bias.double())
    return sums, normed
