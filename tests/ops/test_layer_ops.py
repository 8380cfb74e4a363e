"""What all ops of a layer promise: meaning, tolerance, gradients, bits, strides."""

import pytest
import torch
from backends import (
    DEVICE,
    DTYPES,
    backends_of,
    every_kernel,
    kernels_of,
    needs_cpu_kernels,
    runs,
    widest,
)
from layer_cases import (
    CASES,
    NORM,
    OPS,
    RESIDUAL,
    assert_within_tolerance,
    equal,
    flat,
    like,
    make_keep,
    make_lengths,
    results,
)

from mbt_fast.functional import add_layer_norm, residual_add
from mbt_fast.testing import assert_close_to_exact

SUMS = {op.name: op for op in (NORM, RESIDUAL)}
NAN, INF = float("nan"), float("inf")


def pairs(names, ops=OPS):
    """Ops, each on its backends."""
    each = [pytest.param(op, b, id=f"{n}-{b}") for n, op in ops.items() for b in names(n)]
    return pytest.mark.parametrize(("op", "backend"), each)


def cases(names, of=CASES):
    """Ops, each on its backends and its cases."""
    each = [
        pytest.param(op, backend, case, id=f"{op.name}-{backend}-{name}")
        for op in OPS.values()
        for backend in names(op.name)
        for name, case in op.cases().items()
        if name in of
    ]
    return pytest.mark.parametrize(("op", "backend", "case"), each)


def kernels(ops=OPS, cases=None):
    """Ops on every kernel in every dtype, each on its cases."""
    each = [
        pytest.param(op, case, kernel, dtype, id=f"{op.name}-{name}-{kernel}-{dtype}")
        for op in ops.values()
        for name, case in (cases or op.cases()).items()
        for kernel, dtype in every_kernel(op.name)
    ]
    return pytest.mark.parametrize(("op", "case", "kernel", "dtype"), each)


@cases(backends_of)
def test_it_means_what_it_should(op, backend, case):
    tensors = op.make(case, widest(backend, op.name))
    expected = [t.to(tensors[0][0].dtype) for t in op.state(case, tensors)]
    torch.testing.assert_close(list(op.run(case, tensors, backend)), expected)


@kernels(SUMS)  # GELU has shapes of its own
def test_within_tolerance_forward_and_backward(op, case, kernel, dtype):
    assert_within_tolerance(op, case, op.make(case, dtype), kernel.backend)


@kernels(cases={"": CASES["many-chunks"]})
def test_bits_are_the_same_in_every_run(op, case, kernel, dtype):
    tensors = op.make(case, dtype)
    assert equal(*(results(op, case, tensors, kernel.backend) for _ in range(2)))


@needs_cpu_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_bits_do_not_depend_on_threads(op, dtype):
    case = CASES["many-chunks"]._replace(rows=(3000, 3))
    tensors, before, found = op.make(case, dtype), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(op, case, tensors, "cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("poison", [NAN, INF])
@pytest.mark.parametrize("name", ["dropped", "absent-stream", "dropped-and-absent"])
@pairs(backends_of, SUMS)
def test_what_is_left_out_is_not_read(op, backend, name, poison):
    """Dropped branches, and the slots of absent streams."""
    case = CASES[name]
    clean, keep = op.make(case), make_keep(case)
    dirty = like(clean, torch.clone)
    for m, length in enumerate(make_lengths(case) or []):
        if length is not None:
            dirty[0][m][length == 0, -case.slots :] = poison
            dirty[1][m][length == 0, -case.slots :] = poison
    for branch, kept in zip(dirty[1], keep or [], strict=False):
        branch[~kept] = poison
    first, second = (results(op, case, tensors, backend) for tensors in (clean, dirty))
    assert equal(first, second)
    outputs = len(case.rows) * len(op.kinds) // 2
    dbranches = first[outputs + len(case.rows) :]
    for dbranch, kept in zip(dbranches, keep or [], strict=False):
        assert dbranch[~kept].eq(0).all()
        assert dbranch[kept].ne(0).any()


LAYOUTS = {
    "rows first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "slice of a wider tensor": lambda t: torch.cat([t, t], dim=-1)[..., : t.shape[-1]],
    "every second channel": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "one row for all": lambda t: t[:, :1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("name", ["two-streams", "dropped-in-one"])
@pairs(kernels_of)
def test_any_strides(op, backend, name, layout):
    """Of streams, branches and gradients."""
    case = CASES[name]
    strided = [[layout(t) if t.ndim == 3 else t for t in kind] for kind in op.make(case)]
    assert not strided[0][0].is_contiguous()
    dense = like(strided, torch.Tensor.contiguous)
    found = results(op, case, strided, backend, layout=layout)
    assert equal(found, results(op, case, dense, backend, layout=lambda t: layout(t).contiguous()))


DIFFERENTIATED = {
    "two-streams", "one-stream", "absent-stream", "branch-of-one", "dropped", "dropped-and-absent",
    "absent-of-three",
}  # fmt: skip


@cases(lambda op: ["reference"], DIFFERENTIATED)
def test_gradcheck_twice(op, backend, case):
    case = case._replace(channels=3)
    tensors = op.make(case, torch.float64)

    def run(*leaves):
        rest = iter(leaves)
        return tuple(op.run(case, like(tensors, lambda t: next(rest)), backend))

    leaves = [t.requires_grad_() for t in flat(tensors)]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pairs(kernels_of)
def test_other_derivatives_name_the_reference(op, backend):
    case = CASES["two-streams"]
    tensors = op.make(case)
    x = tensors[0][0].requires_grad_()
    loss = sum(out.square().sum() for out in op.run(case, tensors, backend))
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        grad.sum().backward()

    def first(t):
        return op.run(case, [[t, tensors[0][1]], *tensors[1:]], backend)[0]

    with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
        torch.func.jvp(first, (x,), (x.detach(),))


@pairs(backends_of, SUMS)
def test_autocast_casts_the_branch_to_its_stream(op, backend):
    streams, branches, *parameters = op.make(CASES["two-streams"])
    tensors = [streams, [branch.bfloat16() for branch in branches], *parameters]
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        outs = op.run(CASES["two-streams"], tensors, backend)
    assert {t.dtype for t in outs} == {torch.float32}
    with pytest.raises(TypeError, match=r"branches\[0\] must have dtype torch.float32"):
        op.run(CASES["two-streams"], tensors, backend)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pairs(kernels_of, {n: op for n, op in OPS.items() if n != "residual_add"})
def test_float32_parameters_with_16_bit_rows(op, backend, dtype):
    """As under autocast: parameters stay float32, and so do their gradients."""
    if not runs(backend, op.name, dtype):
        pytest.skip(f"{backend} does not run in {dtype} here")
    case = CASES["two-streams"]
    tensors = [[t.to(dtype) if t.ndim == 3 else t for t in kind] for kind in op.make(case)]
    actual, eager = (results(op, case, tensors, name) for name in (backend, "reference"))
    assert {t.dtype for t in actual if t.ndim == 3} == {dtype}
    assert {t.dtype for t in actual if t.ndim == 1} == {torch.float32}
    exact = results(op, case, tensors, "reference", torch.float64)
    for a, e, x in zip(actual, eager, exact, strict=True):  # gradients are sums of rounded products
        assert_close_to_exact(a.to(dtype), e.to(dtype), x)


@pairs(backends_of)
def test_gradients_do_not_depend_on_the_default_dtype(op, backend):
    tensors = op.make(CASES["two-streams"])
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = like(tensors, lambda t: t.detach().requires_grad_())
        outs = op.run(CASES["two-streams"], leaves, backend)
        torch.set_default_dtype(dtype)
        try:
            found.append(torch.autograd.grad([out.square().sum() for out in outs], flat(leaves)))
        finally:
            torch.set_default_dtype(torch.float32)
    assert equal(*found)


X, K = torch.zeros(2, 4, 3), torch.ones(2, dtype=torch.bool)
BAD = {
    "streams": ((X, [X]), {}, TypeError, "streams must be a sequence of tensors"),
    "dtypes": (([X, X.half()], [X, X]), {}, TypeError, r"streams\[1\] must have"),
    "branches count": (([X], [X, X]), {}, ValueError, "branches must have 1 entries"),
    "branches type": (([X], X), {}, TypeError, "branches must be a sequence"),
    "branch type": (([X], [1]), {}, TypeError, r"branches\[0\] must be a tensor, got 1"),
    "branch shape": (
        ([X], [X[:1]]), {}, ValueError,
        r"branches\[0\] must have shape \[2, 4, 3\] like streams\[0\], got \[1, 4, 3\]",
    ),
    "branch device": (([X], [X.to("meta")]), {}, ValueError, r"branches\[0\] must be on cpu"),
    "keep count": (([X], [X]), {"keep": []}, ValueError, "keep must have 1 entries like streams"),
    "keep type": (([X], [X]), {"keep": [1]}, TypeError, r"keep\[0\] must be a bool tensor"),
    "keep dtype": (([X], [X]), {"keep": [X[:, 0, 0]]}, TypeError, "got a tensor of torch.float32"),
    "keep shape": (
        ([X], [X]), {"keep": [K[:1]]}, ValueError, r"keep\[0\] must have shape \[2\], got \[1\]",
    ),
    "keep device": (
        ([X], [X]), {"keep": [K.to("meta")]}, ValueError,
        r"keep\[0\] must be on cpu like branches\[0\], got meta",
    ),
    "slots": (([X], [X]), {"n_bottlenecks": 5}, ValueError, "n_bottlenecks = 5 rows"),
    "lengths": (([X], [X]), {"lengths": [1]}, TypeError, r"lengths\[0\] must be an int32"),
    "backend": (([X], [X]), {"backend": "fast"}, ValueError, "backend must be one of auto"),
}  # fmt: skip
CALLS = {
    "add_layer_norm": lambda streams, branches, **options: add_layer_norm(
        streams, branches, [X[0, 0]] * len(streams), [X[0, 0]] * len(streams), **options
    ),
    "residual_add": residual_add,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize(("tensors", "given", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_of_a_sum_are_named(call, tensors, given, error, message):
    with pytest.raises(error, match=message):
        call(*tensors, **given)
