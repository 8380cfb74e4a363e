"""Calls of bottleneck_attention that the tests share, and what they mean, stated independently."""

import math
from typing import NamedTuple

import torch
from backends import DEVICE

from mbt_fast import bottleneck_attention
from mbt_fast.ops.bottleneck_attention import BottleneckAttention
from mbt_fast.testing import assert_close_to_exact


class Case(NamedTuple):
    batch: int
    own: tuple[int, ...]  # own tokens N of each stream
    slots: int  # P
    heads: int
    head_dim: int
    lengths: tuple[tuple[int, ...] | None, ...] | None = None  # per stream, per example


CASES = {
    "two-streams": Case(2, (37, 21), 4, 2, 16),
    "mbt-base-tails": Case(1, (1573 % 128, 405 % 128), 5, 1, 64),  # 37 and 21 modulo 128
    "one-stream": Case(2, (19,), 3, 2, 16),
    "three-streams": Case(1, (9, 17, 5), 2, 2, 24),  # D is no power of two
    "no-slots": Case(2, (12, 7), 0, 2, 16),
    "only-slots": Case(2, (0, 6), 4, 1, 16),
    "one-token": Case(1, (1, 1), 0, 1, 16),
    "one-token-one-slot": Case(1, (1, 0), 1, 1, 16),
    "no-rows": Case(2, (0, 3), 0, 2, 16),
    "no-batch": Case(0, (5, 3), 2, 2, 16),
    "wide-head": Case(1, (33, 3), 4, 1, 128),
    "padding": Case(3, (13, 9), 4, 2, 16, ((13, 5, 1), (2, 9, 9))),
    "absent-stream": Case(3, (13, 9), 4, 2, 16, ((0, 13, 4), (9, 0, 3))),
    "all-absent": Case(2, (5, 4), 2, 1, 16, ((0, 5), (0, 4))),
    "padding-in-one": Case(2, (6, 8), 3, 2, 16, (None, (0, 8))),
    "absent-without-slots": Case(2, (6, 8), 0, 2, 16, ((0, 6), (3, 0))),
}


def make_qkv(case, dtype=torch.float32, requires_grad=False):
    shapes = [(case.batch, own + case.slots, 3, case.heads, case.head_dim) for own in case.own]
    streams = [torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes]
    return [stream.requires_grad_(requires_grad) for stream in streams]


def make_lengths(case):
    if case.lengths is None:
        return None
    return [
        None if values is None else torch.tensor(values, dtype=torch.int32, device=DEVICE)
        for values in case.lengths
    ]


def present(case, stream, example):
    lengths = None if case.lengths is None else case.lengths[stream]
    return lengths is None or lengths[example] > 0


def valid_rows(case, stream, example):
    """Indices of the rows that take part."""
    if not present(case, stream, example):
        return []
    lengths = None if case.lengths is None else case.lengths[stream]
    own = case.own[stream] if lengths is None else lengths[example]
    return [*range(own), *range(case.own[stream], case.own[stream] + case.slots)]


def valid_masks(case):
    """bool ``[B, S]`` per stream, the rows that take part."""
    masks = [torch.zeros(case.batch, own + case.slots, dtype=torch.bool) for own in case.own]
    for stream, mask in enumerate(masks):
        for example in range(case.batch):
            mask[example, valid_rows(case, stream, example)] = True
    return [mask.to(DEVICE) for mask in masks]


def stated_independently(case, qkv, scale=None, update=None):
    """Row by row, in float64, without any of the library's code: outputs and log-sum-exps."""
    scale = 1 / math.sqrt(case.head_dim) if scale is None else scale
    outs, lses = [], []
    for stream, packed in enumerate(qkv):
        packed = packed.detach().double().cpu()
        out = torch.zeros_like(packed[:, :, 0])
        lse = torch.full((case.batch, case.heads, packed.shape[1]), -math.inf, dtype=torch.float64)
        for example in range(case.batch):
            rows = valid_rows(case, stream, example)
            for head in range(case.heads):
                q, k, v = packed[example, rows, :, head].unbind(1)
                for index, row in enumerate(rows):
                    weights = [math.exp(scale * float(q[index] @ key)) for key in k]
                    total = sum(weights)
                    mixed = sum(weight * value for weight, value in zip(weights, v, strict=True))
                    out[example, row, head] = mixed / total
                    lse[example, head, row] = math.log(total)
        outs.append(out.to(DEVICE))
        lses.append(lse.to(DEVICE))
    if update == "mean":
        share(case, outs)
    return outs, lses


def share(case, outs):
    if case.slots == 0:
        return
    for example in range(case.batch):
        streams = [m for m in range(len(outs)) if present(case, m, example)]
        if not streams:
            continue
        mean = sum(outs[m][example, -case.slots :].clone() for m in streams) / len(streams)
        for m in streams:
            outs[m][example, -case.slots :] = mean


def compare(backend, qkv, slots, lengths=None, update=None, douts=None, scale=None):
    """Outputs and gradients of a backend against the reference, by the tolerance rule."""
    results = {}
    for name, runner, dtype in (
        ("actual", backend, qkv[0].dtype),
        ("eager", "reference", qkv[0].dtype),
        ("exact", "reference", torch.float64),
    ):
        inputs = [stream.detach().to(dtype).requires_grad_() for stream in qkv]
        outs = bottleneck_attention(
            inputs, slots, lengths=lengths, update=update, scale=scale, backend=runner
        )
        grads = [
            torch.ones_like(o) if d is None else d
            for o, d in zip(outs, douts or [None] * len(outs), strict=True)
        ]
        dqkv = torch.autograd.grad(outs, inputs, [g.to(dtype) for g in grads])
        results[name] = [*outs, *dqkv]
    for actual, eager, exact in zip(*results.values(), strict=True):
        assert_close_to_exact(actual, eager, exact)


def launch(fill, qkv, lengths, slots, update_mean, scale=None):
    """What a launcher of the forward fills: outputs, log-sum-exps, statistics, slots."""
    scale = qkv[0].shape[-1] ** -0.5 if scale is None else scale
    call = (qkv, lengths, slots, update_mean, scale, True)
    results = BottleneckAttention().results(*call)
    fill(*results, *call)
    return results
