"""Bottleneck attention: its meaning, against a row-by-row statement in float64, on each backend."""

import pytest
import torch
from attention_cases import CASES, make_lengths, make_qkv, stated_independently, valid_masks
from backends import (
    DEVICE,
    DTYPES,
    STOCK,
    backends,
    backends_of,
    kernels_of,
    runs,
    widest,
)
from torch.overrides import TorchFunctionMode

from mbt_fast import bottleneck_attention
from mbt_fast.testing import assert_close_to_exact

OP = "bottleneck_attention"
TESTED = [  # the reference defines the tolerance; float64 has a test of its own
    pytest.param(backend, dtype, id=f"{backend}-{dtype}")
    for backend in backends_of(OP)
    for dtype in DTYPES
    if backend != "reference" and runs(backend, dtype=dtype)
]
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
updates = pytest.mark.parametrize("update", [None, "mean"])


def run_with_gradients(qkv, case, douts, dlses, **options):
    """Outputs, log-sum-exps and packed gradients of a call."""
    qkv = [stream.detach().clone().requires_grad_() for stream in qkv]
    lengths = make_lengths(case)
    outs, lses = bottleneck_attention(qkv, case.slots, lengths=lengths, return_lse=True, **options)
    pairs = [*zip(outs, douts, strict=True), *zip(lses, dlses, strict=True)]
    finite = [(o.masked_fill(torch.isinf(o), 0) * d.to(o.dtype)).sum() for o, d in pairs]
    grads = torch.autograd.grad(sum(finite), qkv)
    return outs, lses, grads


@cases
@updates
def test_reference_means_what_it_should(case, update):
    qkv = make_qkv(case, torch.float64)
    outs, lses = bottleneck_attention(
        qkv,
        case.slots,
        lengths=make_lengths(case),
        update=update,
        return_lse=True,
        backend="reference",
    )
    expected_outs, expected_lses = stated_independently(case, qkv, update=update)
    torch.testing.assert_close([*outs, *lses], [*expected_outs, *expected_lses])


@cases
@updates
@pytest.mark.parametrize(("backend", "dtype"), TESTED)
def test_within_tolerance_forward_and_backward(case, update, backend, dtype):
    qkv = make_qkv(case, dtype)
    douts = [torch.randn(s[:, :, 0].shape, device=DEVICE).to(dtype) for s in qkv]
    dlses = [torch.randn(case.batch, case.heads, s.shape[1], device=DEVICE) for s in qkv]
    run = {}
    for name, runner, cast in (
        ("actual", backend, dtype),
        ("eager", "reference", dtype),
        ("exact", "reference", torch.float64),
    ):
        inputs = [stream.to(cast) for stream in qkv]
        run[name] = run_with_gradients(inputs, case, douts, dlses, update=update, backend=runner)
    for part, kind in enumerate(("out", "lse", "dqkv")):
        for stream in range(len(qkv)):
            assert_close_to_exact(
                *(run[name][part][stream] for name in ("actual", "eager", "exact")),
                name=f"{kind}[{stream}]",
            )


@cases
@updates
def test_backends_agree_in_float64(case, update):
    """Where no rounding can hide anything; the tolerance rule needs a narrower dtype."""
    qkv = make_qkv(case, torch.float64)
    douts = [torch.randn_like(stream[:, :, 0]) for stream in qkv]
    dlses = [torch.randn_like(stream[:, :, 0, :, 0]).mT for stream in qkv]
    results = [
        run_with_gradients(qkv, case, douts, dlses, update=update, backend=backend)
        for backend in STOCK
    ]
    torch.testing.assert_close(*results)


@backends
def test_padding_and_absent_streams_are_zero_in_output_and_gradient(backend):
    case = CASES["absent-stream"]
    qkv = make_qkv(case, requires_grad=True)
    lengths = make_lengths(case)
    outs = bottleneck_attention(qkv, case.slots, lengths=lengths, backend=backend)
    torch.autograd.backward(outs, [torch.randn_like(out) for out in outs])
    for stream, out, valid in zip(qkv, outs, valid_masks(case), strict=True):
        for tensor in (out, stream.grad):
            assert tensor[~valid].eq(0).all()
            assert tensor[valid].ne(0).any()


@backends
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_in_padding_does_not_leak(backend, poison):
    case = CASES["absent-stream"]
    clean = make_qkv(case)
    dirty = [stream.clone() for stream in clean]
    lengths = make_lengths(case)
    for stream, valid in zip(dirty, valid_masks(case), strict=True):
        stream[~valid] = poison
    results = []
    for qkv in (clean, dirty):
        qkv = [stream.requires_grad_() for stream in qkv]
        outs, lses = bottleneck_attention(
            qkv, case.slots, lengths=lengths, update="mean", return_lse=True, backend=backend
        )
        grads = torch.autograd.grad(sum(out.square().sum() for out in outs), qkv)
        results.append([*outs, *lses, *grads])
    for expected, actual in zip(*results, strict=True):
        assert torch.equal(actual, expected)


@backends
def test_nan_in_valid_rows_propagates(backend):
    case = CASES["two-streams"]
    qkv = make_qkv(case)
    qkv[0][1, 3, 1] = float("nan")  # one key of the second example
    first, second = bottleneck_attention(qkv, case.slots, backend=backend)
    assert first[1].isnan().all()
    assert first[0].isfinite().all()
    assert second.isfinite().all()


def layouts(stream):
    """The same values in other layouts; strides as people really have them."""
    padded = torch.cat([stream, torch.zeros_like(stream[..., :3])], dim=-1)
    wide = stream.new_zeros(stream.shape[0], stream.shape[1], 2, *stream.shape[2:])
    wide[:, :, 1] = stream
    return {
        "slice of a wider tensor": padded[..., : stream.shape[-1]],
        "every second row": wide.flatten(1, 2)[:, 1::2],
        "heads first": stream.permute(3, 0, 2, 1, 4).contiguous().permute(1, 3, 2, 0, 4),
        "rows first": stream.transpose(0, 1).contiguous().transpose(0, 1),
        "strided channels": stream.repeat_interleave(2, dim=-1)[..., ::2],
    }


@backends
@pytest.mark.parametrize("layout", layouts(torch.zeros(1, 1, 3, 1, 16)))
def test_any_strides(backend, layout):
    case = CASES["two-streams"]
    qkv = make_qkv(case)
    expected = bottleneck_attention(qkv, case.slots, backend=backend)
    views = [layouts(stream)[layout] for stream in qkv]
    assert any(not view.is_contiguous() for view in views)
    actual = bottleneck_attention(views, case.slots, backend=backend)
    exact, _ = stated_independently(case, qkv)
    for a, e, x in zip(actual, expected, exact, strict=True):
        assert_close_to_exact(a, e, x)


@backends
@pytest.mark.parametrize("scale", [0.0, -0.5, 2])
def test_scale_is_used_as_given(backend, scale):
    case = CASES["three-streams"]
    qkv = make_qkv(case, widest(backend))
    outs = bottleneck_attention(qkv, case.slots, scale=scale, backend=backend)
    expected, _ = stated_independently(case, qkv, scale=scale)
    torch.testing.assert_close(outs, [exact.to(qkv[0].dtype) for exact in expected])


@pytest.mark.parametrize("name", ["one-token-one-slot", "no-rows", "no-batch"])
@updates
def test_gradcheck_small(name, update):
    case = CASES[name]
    qkv = make_qkv(case, torch.float64, requires_grad=True)

    def run(*streams):
        return tuple(bottleneck_attention(streams, case.slots, update=update, backend="reference"))

    assert torch.autograd.gradcheck(run, qkv)


@updates
def test_gradcheck_twice_with_lengths_and_lse(update):
    lengths = [torch.tensor([2, 0], dtype=torch.int32), torch.tensor([1, 3], dtype=torch.int32)]
    lengths = [length.to(DEVICE) for length in lengths]
    shapes = [(2, 3 + 1, 3, 1, 16), (2, 3 + 1, 3, 1, 16)]
    qkv = [torch.randn(shape, dtype=torch.float64, device=DEVICE) for shape in shapes]
    qkv = [stream.requires_grad_() for stream in qkv]

    def run(*streams):
        outs, lses = bottleneck_attention(
            streams, 1, lengths=lengths, update=update, return_lse=True, backend="reference"
        )
        return (*outs, *(lse.masked_fill(lse.isinf(), 0) for lse in lses))

    assert torch.autograd.gradcheck(run, qkv, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, qkv, fast_mode=True)


@pytest.mark.parametrize("backend", ["sdpa", *kernels_of(OP)])
def test_second_derivative_of_lse_names_the_reference(backend):
    qkv = torch.randn(1, 5, 3, 1, 16, device=DEVICE, requires_grad=True)
    _, (lse,) = bottleneck_attention([qkv], 1, return_lse=True, backend=backend)
    (grad,) = torch.autograd.grad(lse.sum(), qkv, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        grad.sum().backward()


@pytest.mark.parametrize(("backend", "dtype"), [p for p in TESTED if p.values[1] != torch.float32])
def test_autocast_decides_the_dtype(backend, dtype):
    qkv = make_qkv(CASES["two-streams"])
    with torch.autocast(DEVICE.type, dtype=dtype):
        outs = bottleneck_attention(qkv, 4, backend=backend)
        mixed = bottleneck_attention([qkv[0], qkv[1].to(dtype)], 4, backend=backend)
    expected = bottleneck_attention([stream.to(dtype) for stream in qkv], 4, backend=backend)
    for actual, also, same in zip(outs, mixed, expected, strict=True):
        assert actual.dtype == dtype
        assert torch.equal(actual, same)
        assert torch.equal(also, same)


def test_permuting_tokens_permutes_outputs():
    case = CASES["two-streams"]
    qkv = make_qkv(case, torch.float64)
    order = torch.randperm(case.own[0])
    rows = torch.cat([order, torch.arange(case.own[0], case.own[0] + case.slots)])
    first, second = bottleneck_attention(qkv, case.slots, update="mean")
    moved, same = bottleneck_attention([qkv[0][:, rows], qkv[1]], case.slots, update="mean")
    torch.testing.assert_close(moved, first[:, rows])
    torch.testing.assert_close(same, second)


def test_swapping_streams_swaps_outputs():
    qkv = make_qkv(CASES["two-streams"], torch.float64)
    first, second = bottleneck_attention(qkv, 4, update="mean")
    swapped = bottleneck_attention(qkv[::-1], 4, update="mean")
    torch.testing.assert_close(swapped, [second, first])


class Masks(TorchFunctionMode):
    """The masks that torch's attention is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.seen.append(kwargs.get("attn_mask"))
        return func(*args, **(kwargs or {}))


def test_no_mask_without_padding():
    """The flash kernels of torch take no mask, so fixed lengths must not make one."""
    qkv = make_qkv(CASES["two-streams"])
    length = torch.tensor([3, 4], dtype=torch.int32, device=DEVICE)
    with Masks() as masks:
        bottleneck_attention(qkv, 4, backend="sdpa")
        bottleneck_attention(qkv, 4, lengths=[None, length], backend="sdpa")
    assert [mask is None for mask in masks.seen] == [True, True, True, False]


GOOD = torch.zeros(2, 9, 3, 2, 16)
INT = torch.tensor([3, 4], dtype=torch.int32)
BAD = {
    "a tensor": (GOOD, 4, {}, TypeError, "qkv must be a sequence of tensors"),
    "no streams": ([], 0, {}, ValueError, "qkv must hold at least one stream, got none"),
    "not a tensor": ([GOOD, 1], 4, {}, TypeError, r"qkv\[1\] must be a tensor, got 1"),
    "rank": ([GOOD[0]], 4, {}, ValueError, r"qkv\[0\] must have shape \[B, S, 3, H, D\], got"),
    "not packed": ([GOOD[:, :, :2]], 4, {}, ValueError, r"got \[2, 9, 2, 2, 16\]"),
    "integers": ([GOOD.int()], 4, {}, TypeError, r"must be float16.*got a tensor of torch.int32"),
    "mixed dtypes": ([GOOD, GOOD.half()], 4, {}, TypeError, r"qkv\[1\] must have dtype"),
    "batch": ([GOOD, GOOD[:1]], 4, {}, ValueError, r"qkv\[1\] must have shape .* like qkv\[0\]"),
    "heads": ([GOOD, GOOD[:, :, :, :1]], 4, {}, ValueError, r"qkv\[1\] must have shape"),
    "device": ([GOOD, GOOD.to("meta")], 4, {}, ValueError, r"qkv\[1\] must be on cpu"),
    "head dim small": ([GOOD[..., :15]], 4, {}, ValueError, "16 to 128, got 15"),
    "head dim large": ([torch.zeros(1, 4, 3, 1, 129)], 4, {}, ValueError, "16 to 128, got 129"),
    "slots not int": ([GOOD], 4.0, {}, TypeError, "n_bottlenecks must be an integer, got 4.0"),
    "slots bool": ([GOOD], True, {}, TypeError, "n_bottlenecks must be an integer, got True"),
    "slots negative": ([GOOD], -1, {}, ValueError, "n_bottlenecks must be at least 0, got -1"),
    "too few rows": ([GOOD], 10, {}, ValueError, r"qkv\[0\] must have at least n_bottlenecks = 10"),
    "update": (
        [GOOD], 4, {"update": "sum"}, ValueError,
        "update must be None or 'mean', got 'sum'",
    ),
    "scale": ([GOOD], 4, {"scale": "1"}, TypeError, "scale must be a number or None, got '1'"),
    "return_lse": ([GOOD], 4, {"return_lse": 1}, TypeError, "return_lse must be a bool, got 1"),
    "lengths tensor": ([GOOD], 4, {"lengths": INT}, TypeError, "lengths must be a sequence"),
    "lengths count": (
        [GOOD], 4, {"lengths": [INT, INT]}, ValueError,
        "lengths must have 1 entries",
    ),
    "lengths dtype": (
        [GOOD], 4, {"lengths": [INT.short()]}, TypeError,
        r"lengths\[0\] must be an int32 tensor, an int64 tensor or None, got",
    ),
    "lengths list": ([GOOD], 4, {"lengths": [[3, 4]]}, TypeError, r"lengths\[0\] must be an int32"),
    "lengths shape": ([GOOD], 4, {"lengths": [INT[:1]]}, ValueError, r"must have shape \[2\]"),
    "lengths negative": ([GOOD], 4, {"lengths": [INT - 4]}, ValueError, r"in 0\.\.5.*got -1"),
    "lengths too large": ([GOOD], 4, {"lengths": [INT + 2]}, ValueError, r"in 0\.\.5.*got 6"),
    "lengths device": (
        [GOOD], 4, {"lengths": [INT.to("meta")]}, ValueError,
        r"lengths\[0\] must be on cpu",
    ),
    "backend": (
        [GOOD], 4, {"backend": "fast"}, ValueError,
        "backend must be one of auto, .*'fast'",
    ),
    "backend type": ([GOOD], 4, {"backend": None}, TypeError, "backend must be a string, got None"),
}  # fmt: skip


@pytest.mark.parametrize(("qkv", "slots", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(qkv, slots, options, error, message):
    with pytest.raises(error, match=message):
        bottleneck_attention(qkv, slots, **options)
