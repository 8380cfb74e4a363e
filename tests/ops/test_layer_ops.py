"""GELU with bias, and residual sum, slot mean and LayerNorm: their values and gradients."""

import math

import pytest
import torch
from layer_cases import (
    CASES,
    DEVICE,
    DTYPES,
    approximations,
    backends,
    gelu_kernels,
    kernel_backends,
    make,
    make_keep,
    make_lengths,
    needs_cpu_kernels,
    norm_kernels,
    runs,
    stated_independently,
)

from mbt_fast.functional import add_layer_norm, bias_gelu
from mbt_fast.testing import assert_close_to_exact

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def instruction_set(request, monkeypatch):
    """Choose that of the kernel under test."""
    if "kernel" in request.fixturenames:
        monkeypatch.setenv("MBT_FAST_CPU", request.getfixturevalue("kernel").instruction_set or "")


def gelu_results(x, bias, dout, cast, approximate, backend):
    """Output and gradients, computed in another dtype from the same values."""
    leaves = [t.to(cast).requires_grad_() for t in ([x] if bias is None else [x, bias])]
    out = bias_gelu(*leaves, approximate=approximate, backend=backend)
    return out, *torch.autograd.grad(out, leaves, dout.to(cast))


def norm_results(case, tensors, douts, cast, backend):
    """Sums, normalised sums, and the gradients of everything that is there."""
    leaves = [
        [None if t is None else t.to(cast).clone().requires_grad_() for t in kind]
        for kind in tensors
    ]
    sums, normed = add_layer_norm(
        *leaves,
        keep=make_keep(case),
        n_bottlenecks=case.slots,
        lengths=make_lengths(case),
        backend=backend,
    )
    flat = [leaf for kind in leaves for leaf in kind if leaf is not None]
    grads = torch.autograd.grad([*sums, *normed], flat, [d.to(cast) for d in douts])
    return [*sums, *normed, *grads]


def assert_all_close(actual, eager, exact):
    for index, results in enumerate(zip(actual, eager, exact, strict=True)):
        assert_close_to_exact(*results, name=f"result {index}")


@gelu_kernels(*DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((5, 48), id="tail"),
        pytest.param((3, 7, 33), id="three dimensions"),
        pytest.param((40000, 3), id="narrow rows in many chunks"),
        pytest.param((130, 600), id="wide rows in many chunks"),
        pytest.param((7,), id="one row"),
        pytest.param((2, 1), id="one channel"),
        pytest.param((0, 8), id="no rows"),
        pytest.param((3, 0), id="no channels"),
    ],
)
def test_gelu_within_tolerance(shape, kernel, dtype, approximate, with_bias):
    x, dout = (2 * torch.randn(shape, device=DEVICE).to(dtype) for _ in range(2))
    bias = torch.randn(shape[-1], device=DEVICE).to(dtype) if with_bias else None
    call = (x, bias, dout)
    assert_all_close(
        gelu_results(*call, dtype, approximate, kernel.backend),
        gelu_results(*call, dtype, approximate, "reference"),
        gelu_results(*call, torch.float64, approximate, "reference"),
    )


@gelu_kernels(torch.float32)
def test_gelu_keeps_relative_precision_in_the_left_tail(kernel, dtype, approximate):
    """Where 1 + tanh and 1 + erf cancel, and an absolute tolerance sees nothing."""
    x = -torch.linspace(0.001, 8, 4001, dtype=torch.float64, device=DEVICE)
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    cdf = torch.sigmoid(2 * u) if approximate == "tanh" else torch.erfc(-x / math.sqrt(2)) / 2
    x32 = x.to(dtype)
    actual = bias_gelu(x32, approximate=approximate, backend=kernel.backend).double()
    rounding = (x32.double() / x - 1).abs() + torch.finfo(torch.float32).eps
    condition = 1 + 2 * u.abs() if approximate == "tanh" else 1 + x**2  # of the exponential
    assert ((actual / (x * cdf) - 1).abs() <= 4 * condition * rounding).all()


@gelu_kernels(*DTYPES)
def test_gelu_of_special_values(kernel, dtype, approximate):
    """As torch's in float64; its erf-GELU of infinity is NaN in the narrower ones."""
    values = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 30.0, -30.0, 6e4, -6e4], device=DEVICE)
    values = values.to(dtype)
    call = (values, None, torch.ones_like(values))
    actual = gelu_results(*call, dtype, approximate, kernel.backend)
    exact = gelu_results(*call, torch.float64, approximate, "reference")
    for result, expected in zip(actual, exact, strict=True):
        torch.testing.assert_close(result, expected.to(dtype), equal_nan=True)
    assert actual[0][3:5].signbit().tolist() == [False, True]


@cases
@backends
def test_layer_norm_means_what_it_should(case, backend):
    tensors = make(case, torch.float64 if backend == "reference" else torch.float32)
    options = {"n_bottlenecks": case.slots, "lengths": make_lengths(case), "backend": backend}
    sums, normed = add_layer_norm(*tensors, keep=make_keep(case), eps=0.1, **options)
    expected_sums, expected_normed = stated_independently(case, *tensors, eps=0.1)
    expected = [t.to(tensors[0][0].dtype) for t in [*expected_sums, *expected_normed]]
    torch.testing.assert_close([*sums, *normed], expected)


@norm_kernels(*DTYPES)
@cases
def test_layer_norm_within_tolerance(case, kernel, dtype):
    tensors = make(case, dtype)
    douts = [torch.randn_like(s) for s in 2 * tensors[0]]
    assert_all_close(
        norm_results(case, tensors, douts, dtype, kernel.backend),
        norm_results(case, tensors, douts, dtype, "reference"),
        norm_results(case, tensors, douts, torch.float64, "reference"),
    )


@norm_kernels(torch.float32)
def test_variance_does_not_cancel(kernel, dtype):
    """E[x^2] - E[x]^2 would be all rounding here."""
    case = CASES["no-branch"]
    streams, branches, weights, biases = make(case, dtype)
    tensors = ([stream + 3000 for stream in streams], branches, weights, biases)
    douts = [torch.randn_like(s) for s in 2 * streams]
    assert_all_close(
        norm_results(case, tensors, douts, dtype, kernel.backend),
        norm_results(case, tensors, douts, dtype, "reference"),
        norm_results(case, tensors, douts, torch.float64, "reference"),
    )


@kernel_backends
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_float32_parameters_with_16_bit_rows(backend, dtype):
    """As under autocast: parameters stay float32, and so do their gradients."""
    if not runs(backend, dtype=dtype):
        pytest.skip(f"{backend} does not run in {dtype} here")
    case = CASES["two-streams"]
    streams, branches, weights, biases = make(case)
    streams, branches = ([t.to(dtype) for t in kind] for kind in (streams, branches))
    results = {}
    for name in (backend, "reference"):
        parameters = [w.clone().requires_grad_() for w in (*weights, *biases)]
        sums, normed = add_layer_norm(
            streams, branches, parameters[:2], parameters[2:], backend=name
        )
        bias = weights[0].clone().requires_grad_()
        out = bias_gelu(streams[0], bias, backend=name)
        assert {t.dtype for t in (*sums, *normed, out)} == {dtype}
        loss = sum(t.float().square().sum() for t in (*normed, out))
        results[name] = torch.autograd.grad(loss, [*parameters, bias])
    for actual, expected in zip(*results.values(), strict=True):
        assert actual.dtype == torch.float32
        exactness = torch.finfo(dtype).eps * expected.abs().max()
        assert (actual - expected).abs().max() <= 4 * exactness


@backends
def test_autocast_casts_the_branch_to_its_stream(backend):
    streams, branches, weights, biases = make(CASES["two-streams"])
    branches = [branch.bfloat16() for branch in branches]
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        sums, normed = add_layer_norm(streams, branches, weights, biases, backend=backend)
    assert {t.dtype for t in (*sums, *normed)} == {torch.float32}
    with pytest.raises(TypeError, match=r"branches\[0\] must have dtype torch.float32"):
        add_layer_norm(streams, branches, weights, biases, backend=backend)


@needs_cpu_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_threads_or_runs(dtype):
    case = CASES["many-chunks"]
    tensors = make(case, dtype)
    douts = [torch.randn(s.shape).to(dtype) for s in 2 * tensors[0]]
    x, dout = (torch.randn(3000, 70).to(dtype) for _ in range(2))
    bias = torch.randn(70).to(dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            norms = norm_results(case, tensors, douts, dtype, "cpu")
            results.append([*norms, *gelu_results(x, bias, dout, dtype, "tanh", "cpu")])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@norm_kernels(*DTYPES)
def test_bits_are_the_same_in_every_run(kernel, dtype):
    case = CASES["many-chunks"]
    tensors = make(case, dtype)
    douts = [torch.randn_like(s) for s in 2 * tensors[0]]
    x, dout = (torch.randn(300, 70, device=DEVICE).to(dtype) for _ in range(2))
    bias = torch.randn(70, device=DEVICE).to(dtype)
    first, second = (
        [
            *norm_results(case, tensors, douts, dtype, kernel.backend),
            *gelu_results(x, bias, dout, dtype, "tanh", kernel.backend),
        ]
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@backends
@pytest.mark.parametrize("poison", [NAN, INF])
def test_absent_slots_do_not_leak(backend, poison):
    case = CASES["absent-stream"]
    clean = make(case)
    douts = [torch.randn_like(s) for s in 2 * clean[0]]
    dirty = [[t.clone() for t in kind] for kind in clean]
    for stream, branch, length in zip(*dirty[:2], make_lengths(case), strict=True):
        stream[length == 0, -case.slots :] = poison
        branch[length == 0, -case.slots :] = poison
    results = [
        norm_results(case, tensors, douts, torch.float32, backend) for tensors in (clean, dirty)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@backends
@pytest.mark.parametrize("poison", [NAN, INF])
def test_a_dropped_branch_does_not_leak(backend, poison):
    case = CASES["dropped"]
    clean = make(case)
    douts = [torch.randn_like(s) for s in 2 * clean[0]]
    dirty = [[t.clone() for t in kind] for kind in clean]
    for branch, kept in zip(dirty[1], make_keep(case), strict=True):
        branch[~kept] = poison
    results = [
        norm_results(case, tensors, douts, torch.float32, backend) for tensors in (clean, dirty)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    dbranches = results[0][6:8]
    for dbranch, kept in zip(dbranches, make_keep(case), strict=True):
        assert dbranch[~kept].eq(0).all()
        assert dbranch[kept].ne(0).any()


@backends
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_a_row_that_is_not_finite_spoils_itself_alone(backend, poison):
    streams, branches, weights, biases = make(CASES["no-slots"])
    streams[0][1, 3, 5] = poison
    _, normed = add_layer_norm(streams, branches, weights, biases, backend=backend)
    bad = normed[0].isnan()
    assert bad[1, 3].all()
    assert bad.sum() == normed[0].shape[-1]
    assert normed[1].isfinite().all()


LAYOUTS = {
    "rows first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "slice of a wider tensor": lambda t: torch.cat([t, t], dim=-1)[..., : t.shape[-1]],
    "every second channel": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "one row for all": lambda t: t[:, :1].expand_as(t),
}


@kernel_backends
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, backend):
    case = CASES["two-streams"]
    streams, branches, weights, biases = make(case)
    strided = [[LAYOUTS[layout](t) for t in kind] for kind in (streams, branches)]
    assert not strided[0][0].is_contiguous()
    dense = [[t.contiguous() for t in kind] for kind in strided]
    douts = [LAYOUTS[layout](torch.randn_like(s)) for s in 2 * streams]
    results = []
    for (xs, bs), cast in ((strided, douts), (dense, [d.contiguous() for d in douts])):
        leaves = [t.detach().requires_grad_() for t in (*xs, *bs)]
        sums, normed = add_layer_norm(
            leaves[:2], leaves[2:], weights, biases, n_bottlenecks=case.slots, backend=backend
        )
        grads = torch.autograd.grad([*sums, *normed], leaves, cast)
        out = bias_gelu(xs[0], weights[0], backend=backend)
        results.append([*sums, *normed, *grads, out])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@backends
def test_sums_are_the_streams_where_nothing_is_added(backend):
    streams, _, weights, biases = make(CASES["no-branch"])
    sums, _ = add_layer_norm(streams, None, weights, biases, backend=backend)
    assert all(total is stream for total, stream in zip(sums, streams, strict=True))


@kernel_backends
@pytest.mark.parametrize("unused", ["sums", "normed"])
def test_one_of_the_results_may_be_unused(unused, backend):
    case = CASES["two-streams"]
    grads = []
    for name in (backend, "reference"):
        torch.manual_seed(1)
        leaves = [[t.requires_grad_() for t in kind] for kind in make(case)]
        sums, normed = add_layer_norm(*leaves, n_bottlenecks=case.slots, backend=name)
        used = normed if unused == "sums" else sums
        grads.append(
            torch.autograd.grad(sum(t.square().sum() for t in used), [*leaves[0], *leaves[1]])
        )
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", ["two-streams", "absent-stream", "branch-of-one", "dropped"])
def test_gradcheck_of_the_reference(name):
    case = CASES[name]._replace(channels=3)
    tensors = make(case, torch.float64)
    flat = [t.requires_grad_() for kind in tensors for t in kind if t is not None]

    def run(*leaves):
        kinds, rest = [], list(leaves)
        for kind in tensors:
            kinds.append([None if t is None else rest.pop(0) for t in kind])
        sums, normed = add_layer_norm(
            *kinds,
            keep=make_keep(case),
            n_bottlenecks=case.slots,
            lengths=make_lengths(case),
            backend="reference",
        )
        return (*sums, *normed)

    assert torch.autograd.gradcheck(run, flat, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, flat, fast_mode=True)


@approximations
def test_gradcheck_of_the_reference_of_gelu(approximate):
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((4, 3), (3,))]
    assert torch.autograd.gradcheck(lambda *t: bias_gelu(*t, approximate=approximate), leaves)


@kernel_backends
def test_second_derivative_names_the_reference(backend):
    x = torch.randn(4, 16, requires_grad=True, device=DEVICE)
    streams = torch.randn(1, 4, 16, requires_grad=True, device=DEVICE)
    one = [torch.ones(16, device=DEVICE)]
    outs = (
        bias_gelu(x, backend=backend),
        add_layer_norm([streams], [streams], one, one, backend=backend)[1][0],
    )
    for out, leaf in zip(outs, (x, streams), strict=True):
        (grad,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
        with pytest.raises(NotImplementedError, match="backend='reference'"):
            grad.sum().backward()
