"""Calls of the layer ops that the tests share, and what they mean, stated independently."""

import math
from random import Random
from typing import NamedTuple

import torch
from backends import DEVICE

from mbt_fast.functional import add_layer_norm, bias_gelu, residual_add
from mbt_fast.testing import assert_close_to_exact


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
    "absent-of-three": Case(
        2, (4, 5, 6), 20, 2, lengths=((0, 2), None, (1, 0)), keep=(None, (False, True), None)
    ),
    "dropped-of-one-stream": Case(2, (4,), 9, 4, keep=((True, False),)),
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


def stated_sums(case, streams, branches, *, zero_absent):
    """Residual sums with shared slots, in float64, without any of the library's code.

    An absent stream receives the mean of the present ones, or with ``zero_absent`` zeros.
    """
    sums = [stream.double().clone() for stream in streams]
    for m, branch in enumerate(branches):
        for b in range(case.batch if branch is not None else 0):
            if case.keep is None or case.keep[m] is None or case.keep[m][b]:
                sums[m][b] += branch[b].double()
    for b in range(case.batch if case.slots and (zero_absent or len(sums) > 1) else 0):
        here = [
            m for m in range(len(sums))
            if case.lengths is None or case.lengths[m] is None or case.lengths[m][b] > 0
        ]  # fmt: skip
        mean = sum(sums[m][b, -case.slots :].clone() for m in here) / max(len(here), 1)
        for m, total in enumerate(sums):
            total[b, -case.slots :] = 0 if zero_absent and m not in here else mean
    return sums


def stated_layer_norm(case, streams, branches, weights, biases, eps=1e-6):
    """Row by row, without torch's LayerNorm: sums and normalised sums."""
    sums, normed = stated_sums(case, streams, branches, zero_absent=True), []
    for total, weight, bias in zip(sums, weights, biases, strict=True):
        deviation = total - total.mean(-1, keepdim=True)
        variance = (deviation**2).mean(-1, keepdim=True)
        normed.append(deviation / (variance + eps).sqrt() * weight.double() + bias.double())
    return [*sums, *normed]


def stated_gelu(x, approximate="tanh"):
    """Without torch's GELU, nor its cancellation in the left tail."""
    x = x.double()
    if approximate == "tanh":
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return x * torch.erfc(-x / math.sqrt(2)) / 2


class LayerOp(NamedTuple):
    """An op as a function of a case and some kinds of tensors, each a list over the streams."""

    name: str
    kinds: tuple[int, ...]  # of streams, branches, weights and biases
    run: object  # (case, tensors, backend) -> flat list of results
    state: object  # (case, tensors) -> the same results in float64

    def make(self, case, dtype=torch.float32):
        tensors = make(case, dtype)
        return [tensors[kind] for kind in self.kinds]

    def cases(self):
        return {n: c for n, c in CASES.items() if self.name != "residual_add" or all(c.branches)}


def options(case):
    return {"keep": make_keep(case), "lengths": make_lengths(case), "n_bottlenecks": case.slots}


def run_layer_norm(case, tensors, backend):
    sums, normed = add_layer_norm(*tensors, **options(case), backend=backend)
    return [*sums, *normed]


def run_residual(case, tensors, backend):
    return residual_add(*tensors, **options(case), backend=backend)


def run_gelu(approximate):
    def run(case, tensors, backend):
        pairs = zip(*tensors, strict=True)
        return [bias_gelu(*pair, approximate=approximate, backend=backend) for pair in pairs]

    return run


def state_gelu(approximate):
    return lambda case, tensors: [
        stated_gelu(x.double() + bias.double(), approximate)
        for x, bias in zip(*tensors, strict=True)
    ]


NORM = LayerOp(
    "add_layer_norm", (0, 1, 2, 3), run_layer_norm, lambda c, t: stated_layer_norm(c, *t)
)
RESIDUAL = LayerOp(
    "residual_add", (0, 1), run_residual, lambda c, t: stated_sums(c, *t, zero_absent=False)
)
GELU = LayerOp("bias_gelu", (0, 3), run_gelu("tanh"), state_gelu("tanh"))
GELU_ERF = LayerOp("bias_gelu_erf", (0, 3), run_gelu("none"), state_gelu("none"))
OPS = {op.name: op for op in (NORM, RESIDUAL, GELU, GELU_ERF)}


def flat(tensors):
    """All tensors of some kinds that are there."""
    return [t for kind in tensors for t in kind if t is not None]


def like(tensors, change):
    """The same kinds, with every tensor changed."""
    return [[None if t is None else change(t) for t in kind] for kind in tensors]


def results(op, case, tensors, backend, cast=None, layout=lambda t: t):
    """Results and all gradients, maybe computed in another dtype from the same values.

    Gradients of the results are random, rounded to the dtype of the streams, and in a ``layout``.
    """
    dtype = tensors[0][0].dtype
    leaves = like(tensors, lambda t: t.detach().to(cast or t.dtype).requires_grad_())
    outs = op.run(case, leaves, backend)
    generator = torch.Generator(DEVICE).manual_seed(0)
    douts = [torch.randn(o.shape, generator=generator, device=DEVICE).to(dtype) for o in outs]
    grads = [layout(d.to(o.dtype)) for d, o in zip(douts, outs, strict=True)]
    return [*outs, *torch.autograd.grad(outs, flat(leaves), grads)]


def assert_within_tolerance(op, case, tensors, backend):
    """A backend against the reference."""
    actual, eager = (results(op, case, tensors, name) for name in (backend, "reference"))
    exact = results(op, case, tensors, "reference", torch.float64)
    for index, triple in enumerate(zip(actual, eager, exact, strict=True)):
        assert_close_to_exact(*triple, name=f"result {index}")


def equal(first, second):
    """Whether all results have the same bits."""
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))
