"""Linears: meaning, tolerance, bits, gradients that are asked for, streams, dispatch."""

import math

import pytest
import torch
from backends import (
    DEVICE,
    DTYPES,
    OwnCalls,
    backends_of,
    every_kernel,
    kernels_of,
    needs_cpu_kernels,
    widest,
)
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mbt_fast.functional import linear
from mbt_fast.ops import dispatch
from mbt_fast.ops.linear import BY_BACKEND, TORCH, choose, products
from mbt_fast.testing import assert_close_to_exact

SHAPES = {  # rows [..., C], and K
    "one tile": ((8, 16), 48),
    "tails everywhere": ((3, 7, 33), 70),
    "several panels": ((100, 40), 200),
    "several groups of rows": ((230, 24), 17),
    "sums in pieces": ((9, 1700), 50),
    "sums of odd pieces": ((5, 1601), 20),
    "gradients of weights in pieces": ((1300, 10), 12),
    "one row": ((40,), 30),
    "one of all": ((1, 1), 1),
    "no rows": ((0, 8), 5),
    "no channels before": ((3, 0), 5),
    "no channels after": ((3, 8), 0),
}


def kernels(*dtypes):
    each = [
        pytest.param(k, dtype, id=f"{k}-{dtype}") for k, dtype in every_kernel("linear", dtypes)
    ]
    return pytest.mark.parametrize(("kernel", "dtype"), each)


def make(shape, outputs, dtype=torch.float32, bias=True):
    """Rows, weight and bias, and a gradient of the product."""
    sizes = [shape, (outputs, shape[-1]), (outputs,), (*shape[:-1], outputs)]
    x, weight, b, dout = (torch.randn(size, device=DEVICE).to(dtype) for size in sizes)
    return x, weight, b if bias else None, dout


def results(x, weight, bias, dout, cast, backend):
    """Product and gradients, computed in another dtype from the same values."""
    leaves = [t.to(cast).requires_grad_() for t in (x, weight, bias) if t is not None]
    out = linear(*leaves, backend=backend)
    return out, *torch.autograd.grad(out, leaves, dout.to(cast))


@pytest.mark.parametrize("backend", backends_of("linear"))
@pytest.mark.parametrize("shape", ["tails everywhere", "no channels before"])
def test_it_means_what_it_should(backend, shape):
    x, weight, bias, _ = make(*SHAPES[shape], widest(backend, "linear"))
    stated = (x[..., None, :] * weight).sum(-1) + bias
    torch.testing.assert_close(linear(x, weight, bias, backend=backend), stated)


@kernels(*DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_within_tolerance_forward_and_backward(name, kernel, dtype):
    for bias in (False, True):
        call = make(*SHAPES[name], dtype, bias)
        for index, triple in enumerate(
            zip(
                results(*call, dtype, kernel.backend),
                results(*call, dtype, "reference"),
                results(*call, torch.float64, "reference"),
                strict=True,
            )
        ):
            assert_close_to_exact(*triple, name=f"result {index}, bias {bias}")


@needs_cpu_kernels
@kernels(torch.float32, torch.bfloat16)
def test_bits_do_not_depend_on_threads(kernel, dtype):
    call, before, found = make((1000, 200), 300, dtype), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(results(*call, dtype, kernel.backend))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@kernels(torch.float32, torch.bfloat16)
def test_bits_of_a_row_do_not_depend_on_the_others(kernel, dtype):
    x, weight, bias, _ = make((113, 900), 70, dtype)
    whole = linear(x, weight, bias, backend=kernel.backend)
    assert torch.equal(whole[57:60], linear(x[57:60], weight, bias, backend=kernel.backend))
    assert torch.equal(whole[:, 50:], linear(x, weight[50:], bias[50:], backend=kernel.backend))


@pytest.mark.parametrize("backend", kernels_of("linear"))
@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_only_what_is_asked_for_is_computed(backend, asked):
    *leaves, dout = make((6, 20), 10)
    for index in asked:
        leaves[index].requires_grad_()
    with OwnCalls() as own:
        out = linear(*leaves, backend=backend)
        grads = torch.autograd.grad(out, [leaves[index] for index in asked], dout)
    (_, (_, xs, weights, biases), _) = own.calls[1]
    assert [xs[0] is not None, weights[0] is not None, biases[0]] == [
        1 in asked,
        0 in asked,
        2 in asked,
    ]
    expected = results(*(t.detach() for t in leaves), dout, torch.float32, "reference")[1:]
    torch.testing.assert_close(list(grads), [expected[index] for index in asked])


@pytest.mark.parametrize("backend", kernels_of("linear"))
def test_streams_of_one_call_are_independent(backend):
    """One has no bias, and from one no gradient arrives."""
    calls = [make((2, rows, 20), 10 * rows, bias=rows != 4) for rows in (5, 4, 3)]
    xs, weights, biases, douts = (list(kind) for kind in zip(*calls, strict=True))
    for tensor in (*xs, *weights):
        tensor.requires_grad_()
    outs = products(BY_BACKEND[backend], xs, weights, biases)
    asked = [xs[0], weights[0], xs[2], weights[2]]
    grads = torch.autograd.grad([outs[0], outs[2]], asked, [douts[0], douts[2]])
    for call, out in zip(calls, outs, strict=True):
        assert torch.equal(out, linear(*call[:3], backend=backend))
    for m, found in ((0, grads[:2]), (2, grads[2:])):
        expected = results(*(t.detach() for t in calls[m]), torch.float32, backend)
        assert all(map(torch.equal, found, expected[1:3]))


@pytest.mark.parametrize("backend", kernels_of("linear"))
def test_any_strides(backend):
    x, weight, bias, dout = make((40, 30), 24)
    strided = (x.T.contiguous().T, weight.T.contiguous().T, bias.repeat_interleave(2)[::2], dout)
    spread = dout[:1].expand_as(dout)
    for given, gradient in ((dout.T.contiguous().T, dout), (spread, spread.contiguous())):
        found = results(*strided[:3], given, torch.float32, backend)
        assert all(
            map(torch.equal, found, results(x, weight, bias, gradient, torch.float32, backend))
        )


@kernels(*DTYPES)
def test_special_values_stay_in_their_rows(kernel, dtype):
    x, weight, bias, _ = make((9, 20), 50, dtype)
    x[2, 3], x[5, 0] = math.nan, math.inf
    out = linear(x, weight, bias, backend=kernel.backend)
    assert out[2].isnan().all()
    assert out[5].isinf().all()
    assert out[[0, 1, 3, 4, 6, 7, 8]].isfinite().all()


@pytest.mark.parametrize("backend", kernels_of("linear"))
def test_other_derivatives_name_the_reference(backend):
    x, weight, *_ = make((4, 16), 8)
    x.requires_grad_()
    loss = linear(x, weight, backend=backend).square().sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
        torch.func.jvp(lambda t: linear(t, weight, backend=backend), (x.detach(),), (x.detach(),))


@pytest.mark.parametrize("backend", backends_of("linear"))
def test_the_flop_counter_counts_a_product(backend):
    x, weight, bias, _ = make((2, 6, 20), 10)
    x.requires_grad_()
    weight.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        out = linear(x, weight, bias, backend=backend)
        assert counter.get_total_flops() == 2 * 12 * 20 * 10
        out.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 12 * 20 * 10


@pytest.mark.parametrize("backend", backends_of("linear"))
def test_autocast_takes_its_dtype(backend):
    leaves = [t.requires_grad_() for t in make((7, 32), 20)[:3]]
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        out = linear(*leaves, backend=backend)
        expected = functional.linear(*leaves)
    torch.testing.assert_close(out, expected)
    assert {g.dtype for g in torch.autograd.grad(out.float().sum(), leaves)} == {torch.float32}


def call_of(**options):
    given = {"dtype": torch.float32, "size": 2**30} | options
    return dispatch.Call("linear", torch.device("cpu"), **given)


@needs_cpu_kernels
def test_auto_takes_the_kernels_where_they_are_measured_to_win(monkeypatch):
    monkeypatch.setattr(dispatch, "_VENDOR", ["AuthenticAMD"])
    assert dispatch.select(call_of()).name == "cpu"
    assert dispatch.select(call_of(size=2**10)).name == "sdpa"
    assert dispatch.select(call_of(dtype=torch.float16)).name == "sdpa"
    assert "1024 multiply-adds" in dispatch.format_table(call_of(size=2**10))
    monkeypatch.setattr(dispatch, "_VENDOR", ["GenuineIntel"])
    assert dispatch.select(call_of()).name == "sdpa"
    assert "measured on CPUs by AuthenticAMD alone" in dispatch.format_table(call_of())
    assert dispatch.select(call_of(), "cpu").name == "cpu"


def test_dtypes_that_differ_are_left_to_torch_which_refuses_them():
    x, weight = torch.zeros(2, 3), torch.zeros(4, 3, dtype=torch.bfloat16)
    assert choose([x], [weight], "cpu") is TORCH


X, W, B = torch.zeros(2, 4, 3), torch.zeros(5, 3), torch.zeros(5)
BAD = {
    "not a tensor": ((1, W), {}, TypeError, "x must be a tensor, got 1"),
    "integers": ((X.int(), W), {}, TypeError, "x must be float16"),
    "scalar": ((X[0, 0, 0], W), {}, ValueError, r"x must have shape \[\.\.\., C\], got a scalar"),
    "weight type": ((X, 1), {}, TypeError, "weight must be a tensor, got 1"),
    "weight dtype": ((X, W.double()), {}, TypeError, "weight must have dtype torch.float32"),
    "weight shape": (
        (X, W.T), {}, ValueError, r"weight must have shape \[K, 3\].*got \[3, 5\]",
    ),
    "weight device": ((X, W.to("meta")), {}, ValueError, "weight must be on cpu like x"),
    "bias shape": ((X, W, B[:3]), {}, ValueError, r"bias must have shape \[5\].*got \[3\]"),
    "bias dtype": ((X, W, B.half()), {}, TypeError, "bias must have dtype torch.float32 like x"),
    "bias device": ((X, W, B.to("meta")), {}, ValueError, "bias must be on cpu like x, got meta"),
    "backend": ((X, W), {"backend": "fast"}, ValueError, "backend must be one of auto"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(call, options, error, message):
    with pytest.raises(error, match=message):
        linear(*call, **options)
