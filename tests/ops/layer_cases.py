"""Calls of the layer ops that the tests share, and what LayerNorm means, stated independently."""

from random import Random
from typing import NamedTuple

import pytest
import torch

from mbt_fast import dispatch, native

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def runs(backend, op="add_layer_norm", dtype=torch.float32):
    """Whether a backend can run an op here in this dtype."""
    (row,) = (row for row in dispatch.BACKENDS if row.name == backend)
    return not row.reasons(dispatch.Call(op, DEVICE, dtype))


# Under TRITON_INTERPRET=1, or on a GPU, this includes "triton".
BACKENDS = [row.name for row in dispatch.BACKENDS if runs(row.name)]
backends = pytest.mark.parametrize("backend", BACKENDS)
kernel_backends = pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
approximations = pytest.mark.parametrize("approximate", ["tanh", "none"])
needs_cpu_kernels = pytest.mark.skipif(
    "cpu" not in BACKENDS, reason=f"no CPU kernels: {'; '.join(native.why_no_cpu_kernels())}"
)


class Kernel(NamedTuple):
    """A backend; that of the CPU once for every instruction set, chosen by MBT_FAST_CPU."""

    backend: str
    instruction_set: str | None = None

    def __str__(self):
        return "-".join(filter(None, self))


KERNELS = [Kernel("triton")] if "triton" in BACKENDS else []
if "cpu" in BACKENDS:
    KERNELS += [Kernel("cpu", name) for name in native.module().instruction_sets()]


def norm_kernels(*dtypes, op="add_layer_norm"):
    """Every kernel of LayerNorm, or of ``op``, in every one of these dtypes that it has."""
    tested = [
        pytest.param(kernel, dtype, id=f"{kernel}-{dtype}")
        for kernel in KERNELS
        for dtype in dtypes
        if runs(kernel.backend, op, dtype)
    ]
    return pytest.mark.parametrize(("kernel", "dtype"), tested)


def gelu_kernels(*dtypes):
    """Every kernel of GELU in every one of these dtypes that it has."""
    tested = [
        pytest.param(kernel, dtype, approximate, id=f"{kernel}-{dtype}-{approximate}")
        for kernel in KERNELS
        for dtype in dtypes
        for approximate, op in dispatch.GELU.items()
        if runs(kernel.backend, op, dtype)
    ]
    return pytest.mark.parametrize(("kernel", "dtype", "approximate"), tested)


class Case(NamedTuple):
    batch: int
    rows: tuple[int, ...]  # of each stream, slots included
    channels: int
    slots: int = 0
    branches: tuple[bool, ...] = (True, True, True)  # which streams have one
    lengths: tuple[tuple[int, ...] | None, ...] | None = None  # per stream, per example
    keep: tuple[tuple[bool, ...] | None, ...] | None = None  # likewise


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
    "wide-rows": Case(2, (9, 5), 1100, 3),  # a program takes few rows of several
    "only-slots": Case(2, (2, 4), 16, 2),
    "absent-stream": Case(3, (6, 5), 24, 2, lengths=((0, 4, 2), (3, 0, 1))),
    "absent-without-branch": Case(2, (6, 5), 24, 2, (False, False, False), ((0, 4), None)),
    "all-absent": Case(2, (4, 3), 16, 2, lengths=((0, 2), (0, 1))),
    "dropped": Case(3, (6, 5), 24, 2, keep=((True, False, False), (False, False, True))),
    "dropped-in-one": Case(2, (6, 5), 24, keep=(None, (False, True))),
    "dropped-and-absent": Case(
        2, (6, 5), 24, 2, lengths=((0, 4), None), keep=((True, False), (False, True))
    ),
    "no-rows": Case(2, (0, 3), 16),
    "no-batch": Case(0, (4, 3), 16, 2),
}


def drawn(seed, complete):
    """A case by chance; ``complete`` if every stream is to have a branch."""
    random = Random(seed)
    count, batch = random.randint(1, 4), random.randint(1, 4)
    slots = random.choice([0, 1, 4])
    rows = tuple(slots + random.randint(1, 12) for _ in range(count))
    branches = tuple(complete or random.random() < 0.7 for _ in range(count))
    lengths = [
        tuple(
            random.choice([0, most - slots, random.randint(0, most - slots)]) for _ in range(batch)
        )
        for most in rows
    ]
    keep = [tuple(random.random() < 0.5 for _ in range(batch)) if has else None for has in branches]
    return Case(
        batch,
        rows,
        random.randint(1, 200),
        slots,
        branches,
        tuple(entry if slots and random.random() < 0.7 else None for entry in lengths),
        tuple(entry if random.random() < 0.7 else None for entry in keep),
    )


CASES |= {f"random-{seed}": drawn(seed, complete=seed % 2 == 0) for seed in range(6)}


def make(case, dtype=torch.float32):
    """Streams, branches, weights and biases."""
    streams, branches = (
        [
            torch.randn(case.batch, rows, case.channels, device=DEVICE).to(dtype)
            for rows in case.rows
        ]
        for _ in range(2)
    )
    branches = [b if has else None for b, has in zip(branches, case.branches, strict=False)]
    weights, biases = (
        [torch.randn(case.channels, device=DEVICE).to(dtype) for _ in case.rows] for _ in range(2)
    )
    return streams, branches, weights, biases


def make_lengths(case):
    return per_example(case.lengths, torch.int32)


def make_keep(case):
    return per_example(case.keep, torch.bool)


def per_example(entries, dtype):
    if entries is None:
        return None
    return [None if e is None else torch.tensor(e, dtype=dtype, device=DEVICE) for e in entries]


def stated_independently(case, streams, branches, weights, biases, eps):
    """Row by row, in float64, without any of the library's code or torch's LayerNorm."""
    sums = [stream.double().clone() for stream in streams]
    for m, branch in enumerate(branches):
        for b in range(case.batch if branch is not None else 0):
            if case.keep is None or case.keep[m] is None or case.keep[m][b]:
                sums[m][b] += branch[b].double()
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
