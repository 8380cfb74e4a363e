"""Calls of the CUDA kernels that the tests share, held to the tolerance rule."""

from functools import partial

import torch
from attention_cases import DEVICE, Case, make_lengths, make_qkv, present
from hopper import poison_padding

from mbt_fast import bottleneck_attention
from mbt_fast.testing import assert_close_to_exact


def scaled_qkv(case, dtype, size):
    """Streams whose queries and keys are ``size`` times as large as normal ones."""
    qkv = make_qkv(case, dtype)
    for stream in qkv:
        stream[:, :, :2] *= size
    return qkv


def assert_outputs_within_tolerance(case, dtype, poison=False, size=1.0, **options):
    qkv, lengths = scaled_qkv(case, dtype, size), make_lengths(case)
    results = []
    for backend, cast in (("reference", dtype), ("reference", torch.float64), ("cuda", dtype)):
        if backend == "cuda" and poison:
            poison_padding(case, qkv)
        inputs = [stream.to(cast) for stream in qkv]
        outs, lses = bottleneck_attention(
            inputs, case.slots, lengths=lengths, return_lse=True, backend=backend, **options
        )
        results.append([*outs, *lses])
    for eager, exact, actual in zip(*results, strict=True):
        assert_close_to_exact(actual, eager.to(actual.dtype), exact)


def make_gradients(case, dtype):
    """Of outputs and log-sum-exps; the last stream's log-sum-exp is not used."""
    rows = [own + case.slots for own in case.own]
    douts = [torch.randn(case.batch, r, case.heads, case.head_dim, device=DEVICE) for r in rows]
    dlses = [torch.randn(case.batch, case.heads, r, device=DEVICE) for r in rows[:-1]]
    return [d.to(dtype) for d in douts], dlses


def unused_rows(case, stream, example):
    """Rows that take no part: padding, or all of an absent stream."""
    if case.lengths is None or case.lengths[stream] is None:
        return slice(0, 0)
    length = case.lengths[stream][example]
    return slice(length, case.own[stream] + (0 if present(case, stream, example) else case.slots))


def fill_unused(case, gradients, value):
    """Set the gradients of rows that take no part."""
    douts, dlses = ([g.clone() for g in entries] for entries in gradients)
    for example in range(case.batch):
        for stream, dout in enumerate(douts):
            dout[example, unused_rows(case, stream, example)] = value
        for stream, dlse in enumerate(dlses):
            dlse[example, :, unused_rows(case, stream, example)] = value
    return douts, dlses


def gradients_of(backend, qkv, case, gradients, **options):
    """Packed gradients of the streams."""
    inputs = [stream.detach().requires_grad_() for stream in qkv]
    outs, lses = bottleneck_attention(
        inputs, case.slots, lengths=make_lengths(case), return_lse=True, backend=backend, **options
    )
    douts, dlses = gradients
    given = [d.to(o.dtype) for d, o in zip([*douts, *dlses], [*outs, *lses], strict=False)]
    return torch.autograd.grad([*outs, *lses[: len(dlses)]], inputs, given)


def assert_gradients_within_tolerance(case, dtype, poison=False, size=1.0, **options):
    qkv, gradients = scaled_qkv(case, dtype, size), make_gradients(case, dtype)
    clean = fill_unused(case, gradients, 0.0)
    run = partial(gradients_of, case=case, **options)
    eager = run("reference", qkv, gradients=clean)
    exact = run("reference", [stream.double() for stream in qkv], gradients=clean)
    if poison:
        poison_padding(case, qkv)
        gradients = fill_unused(case, gradients, torch.nan)
    actual = run("cuda", qkv, gradients=gradients)
    for stream, results in enumerate(zip(actual, eager, exact, strict=True)):
        for which, name in enumerate(("dq", "dk", "dv")):
            parts = (result[:, :, which] for result in results)
            assert_close_to_exact(*parts, name=f"{name} of stream {stream}")
        for example in range(case.batch):
            assert results[0][example, unused_rows(case, stream, example)].eq(0).all()


def assert_propagates(which, value):
    """One element of a query, key or value spoils what it spoils in the reference."""
    (stream,) = make_qkv(Case(1, (101,), 0, 2, 64), torch.bfloat16)
    stream[0, 70, which, 1, 3] = value
    (actual,) = bottleneck_attention([stream], 0, backend="cuda")
    (expected,) = bottleneck_attention([stream], 0, backend="reference")
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(actual), kind(expected))
