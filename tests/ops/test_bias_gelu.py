"""GELU with bias: what it promises beyond test_layer_ops.py."""

import math

import pytest
import torch
from backends import DEVICE, DTYPES, every_kernel
from layer_cases import stated_gelu
from torch.nn.functional import gelu

from mbt_fast.functional import bias_gelu
from mbt_fast.testing import assert_close_to_exact

OPS = {"tanh": "bias_gelu", "none": "bias_gelu_erf"}  # by ``approximate``


def kernels(*dtypes):
    """Both forms on every kernel in every one of these dtypes that it has."""
    each = [
        pytest.param(kernel, dtype, approximate, id=f"{kernel}-{dtype}-{approximate}")
        for approximate, op in OPS.items()
        for kernel, dtype in every_kernel(op, dtypes)
    ]
    return pytest.mark.parametrize(("kernel", "dtype", "approximate"), each)


def results(x, bias, dout, cast, approximate, backend):
    """Output and gradients, computed in another dtype from the same values."""
    leaves = [t.to(cast).requires_grad_() for t in ([x] if bias is None else [x, bias])]
    out = bias_gelu(*leaves, approximate=approximate, backend=backend)
    return out, *torch.autograd.grad(out, leaves, dout.to(cast))


SHAPES = {
    "tail": (5, 48),
    "three dimensions": (3, 7, 33),
    "narrow rows in many chunks": (40000, 3),
    "wide rows in many chunks": (130, 600),
    "one row": (7,),
    "one channel": (2, 1),
    "no rows": (0, 8),
    "no channels": (3, 0),
}


@kernels(*DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_within_tolerance_forward_and_backward(shape, kernel, dtype, approximate):
    x, dout = (2 * torch.randn(shape, device=DEVICE).to(dtype) for _ in range(2))
    for bias in (None, torch.randn(shape[-1], device=DEVICE).to(dtype)):
        call = (x, bias, dout)
        for index, triple in enumerate(
            zip(
                results(*call, dtype, approximate, kernel.backend),
                results(*call, dtype, approximate, "reference"),
                results(*call, torch.float64, approximate, "reference"),
                strict=True,
            )
        ):
            assert_close_to_exact(*triple, name=f"result {index}, bias {bias is not None}")


@kernels(torch.float32)
def test_relative_precision_in_the_left_tail(kernel, dtype, approximate):
    """Where 1 + tanh and 1 + erf cancel, and an absolute tolerance sees nothing."""
    x = -torch.linspace(0.001, 8, 4001, dtype=torch.float64, device=DEVICE)
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    x32 = x.to(dtype)
    actual = bias_gelu(x32, approximate=approximate, backend=kernel.backend).double()
    rounding = (x32.double() / x - 1).abs() + torch.finfo(torch.float32).eps
    condition = 1 + 2 * u.abs() if approximate == "tanh" else 1 + x**2  # of the exponential
    error = (actual / stated_gelu(x, approximate) - 1).abs()
    assert (error <= 4 * condition * rounding).all()


@kernels(*DTYPES)
def test_special_values(kernel, dtype, approximate):
    """As torch's in float64; its erf-GELU of infinity is NaN in the narrower ones."""
    inf = math.inf
    values = torch.tensor([math.nan, inf, -inf, 0.0, -0.0, 30.0, -30.0, 6e4, -6e4], device=DEVICE)
    values = values.to(dtype)
    call = (values, None, torch.ones_like(values))
    actual = results(*call, dtype, approximate, kernel.backend)
    exact = results(*call, torch.float64, approximate, "reference")
    for result, expected in zip(actual, exact, strict=True):
        torch.testing.assert_close(result, expected.to(dtype), equal_nan=True)
    assert actual[0][3:5].signbit().tolist() == [False, True]


@pytest.mark.parametrize("approximate", OPS)
def test_gradcheck(approximate):
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((4, 3), (3,))]
    assert torch.autograd.gradcheck(lambda *t: bias_gelu(*t, approximate=approximate), leaves)


def test_auto_is_torchs_own_where_the_kernels_do_not_run():
    x = torch.randn(300, 300, dtype=torch.float64)
    assert torch.equal(bias_gelu(x), gelu(x, approximate="tanh"))


X, W = torch.zeros(2, 4, 3), torch.zeros(3)
BAD = {
    "not a tensor": ((1,), {}, TypeError, "x must be a tensor, got 1"),
    "integers": ((X.int(),), {}, TypeError, "x must be float16"),
    "scalar": (
        (torch.tensor(1.0),), {}, ValueError, r"x must have shape \[\.\.\., C\], got a scalar",
    ),
    "bias shape": ((X, W[:2]), {}, ValueError, r"bias must have shape \[3\].*got \[2\]"),
    "bias dtype": ((X, W.double()), {}, TypeError, "bias must be torch.float32 like x"),
    "bias type": ((X, 1), {}, TypeError, "bias must be a tensor, got 1"),
    "bias device": ((X, W.to("meta")), {}, ValueError, "bias must be on cpu like x, got meta"),
    "approximate": (
        (X,), {"approximate": "erf"}, ValueError, "approximate must be 'none' or 'tanh'",
    ),
    "backend": ((X,), {"backend": "fast"}, ValueError, "backend must be one of auto"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(call, options, error, message):
    with pytest.raises(error, match=message):
        bias_gelu(*call, **options)
