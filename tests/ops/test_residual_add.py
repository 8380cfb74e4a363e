"""Residual sum with shared slots: values, gradients, what it launches, errors."""

import math

import pytest
import torch
from layer_cases import (
    CASES,
    DEVICE,
    DTYPES,
    Case,
    backends,
    kernel_backends,
    make,
    make_keep,
    make_lengths,
    needs_cpu_kernels,
    norm_kernels,
)
from torch.utils._python_dispatch import TorchDispatchMode

from mbt_fast import dispatch, ops
from mbt_fast.functional import add_layer_norm, residual_add
from mbt_fast.testing import assert_close_to_exact

EVERY = {name: case for name, case in CASES.items() if all(case.branches)} | {
    "absent-of-three": Case(
        2, (4, 5, 6), 20, 2, lengths=((0, 2), None, (1, 0)), keep=(None, (False, True), None)
    ),
    "dropped-of-one-stream": Case(2, (4,), 9, 4, keep=((True, False),)),
}
cases = pytest.mark.parametrize("case", EVERY.values(), ids=EVERY.keys())
kernels = norm_kernels(*DTYPES, op="residual_add")
NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def instruction_set(request, monkeypatch):
    """Choose that of the kernel under test."""
    if "kernel" in request.fixturenames:
        monkeypatch.setenv("MBT_FAST_CPU", request.getfixturevalue("kernel").instruction_set or "")


def options(case):
    return {"keep": make_keep(case), "lengths": make_lengths(case), "n_bottlenecks": case.slots}


def results(case, tensors, douts, backend, cast=None):
    """Sums, and the gradients of streams and branches."""
    count = len(case.rows)
    leaves = [t.detach().to(cast or t.dtype).requires_grad_() for kind in tensors for t in kind]
    sums = residual_add(leaves[:count], leaves[count:], **options(case), backend=backend)
    grads = torch.autograd.grad(sums, leaves, [d.to(cast or d.dtype) for d in douts])
    return [*sums, *grads]


def make_all(case, dtype=torch.float32):
    """Streams and branches, and gradients of the sums."""
    tensors = make(case, dtype)[:2]
    return tensors, [torch.randn_like(stream) for stream in tensors[0]]


def stated_independently(case, streams, branches):
    """Example by example, in float64, without any of the library's code."""
    sums = [stream.double().clone() for stream in streams]
    for b in range(case.batch):
        for m, branch in enumerate(branches):
            if case.keep is None or case.keep[m] is None or case.keep[m][b]:
                sums[m][b] += branch[b].double()
        here = [
            total[b, -case.slots :].clone() for m, total in enumerate(sums)
            if case.lengths is None or case.lengths[m] is None or case.lengths[m][b] > 0
        ]  # fmt: skip
        for total in sums if case.slots and len(sums) > 1 else []:
            total[b, -case.slots :] = sum(here) / max(len(here), 1)
    return sums


@cases
@backends
def test_it_means_what_it_should(case, backend):
    tensors, _ = make_all(case, torch.float64 if backend == "reference" else torch.float32)
    sums = residual_add(*tensors, **options(case), backend=backend)
    expected = [t.to(sums[0].dtype) for t in stated_independently(case, *tensors)]
    torch.testing.assert_close(sums, expected)


@kernels
@cases
def test_within_tolerance(case, kernel, dtype):
    call = (case, *make_all(case, dtype))
    actual, eager = (results(*call, name) for name in (kernel.backend, "reference"))
    exact = results(*call, "reference", torch.float64)
    for index, triple in enumerate(zip(actual, eager, exact, strict=True)):
        assert_close_to_exact(*triple, name=f"result {index}")


@backends
def test_absent_streams_receive_the_mean_where_add_layer_norm_writes_zeros(backend):
    case = EVERY["absent-stream"]
    streams, branches, weights, biases = make(case)
    sums = residual_add(streams, branches, **options(case), backend=backend)
    zeroed, _ = add_layer_norm(streams, branches, weights, biases, **options(case), backend=backend)
    absent = make_lengths(case)[0] == 0
    assert torch.equal(sums[0][absent, -case.slots :], sums[1][absent, -case.slots :])
    assert sums[0][absent, -case.slots :].ne(0).all()
    assert zeroed[0][absent, -case.slots :].eq(0).all()


@backends
@pytest.mark.parametrize("poison", [NAN, INF])
@pytest.mark.parametrize("name", ["dropped", "dropped-and-absent"])
def test_what_is_left_out_is_not_read(name, poison, backend):
    """Dropped branches, and the slots of absent streams."""
    case = EVERY[name]
    clean, douts = make_all(case)
    dirty = [[t.clone() for t in kind] for kind in clean]
    lengths = make_lengths(case) or [None] * len(case.rows)
    for stream, branch, kept, length in zip(*dirty, make_keep(case), lengths, strict=True):
        branch[~kept] = poison
        if length is not None:
            stream[length == 0, -case.slots :] = poison
    found = [results(case, tensors, douts, backend) for tensors in (clean, dirty)]
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    for dbranch, kept in zip(found[0][4:], make_keep(case), strict=True):
        assert dbranch[~kept].eq(0).all()
        assert dbranch[kept].ne(0).any()


LAYOUTS = {
    "rows first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "slice of a wider tensor": lambda t: torch.cat([t, t], dim=-1)[..., : t.shape[-1]],
    "every second channel": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "one row for all": lambda t: t[:, :1].expand_as(t),
}


@kernel_backends
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["two-streams", "dropped-in-one"])
def test_any_strides(name, layout, backend):
    tensors, douts = make_all(EVERY[name])
    strided = [[LAYOUTS[layout](t) for t in kind] for kind in (*tensors, douts)]
    dense = [[t.contiguous() for t in kind] for kind in strided]
    assert not strided[0][0].is_contiguous()
    found = [results(EVERY[name], kinds[:2], kinds[2], backend) for kinds in (strided, dense)]
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


class OwnOperators(TorchDispatchMode):
    """Names of our operators that run."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "mbt_fast":
            self.seen.append(func)
        return func(*args, **(kwargs or {}))


@kernel_backends
def test_the_gradient_of_a_plain_sum_is_what_arrives(backend):
    """No kernel in the backward, and no copy: one stream, or several without slots."""
    for name in ("no-slots", "one-stream"):
        (streams, branches), douts = make_all(EVERY[name])
        leaves = [t.requires_grad_() for t in (*streams, *branches)]
        with OwnOperators() as operators:
            sums = residual_add(streams, branches, n_bottlenecks=EVERY[name].slots, backend=backend)
            grads = torch.autograd.grad(sums, leaves, douts)
        assert operators.seen == [ops.residual_add_fwd]
        assert [g.data_ptr() for g in grads] == 2 * [d.data_ptr() for d in douts]


@kernel_backends
def test_only_what_differs_is_written(backend):
    """Without slots the stream's gradient is what arrives; without keep the branch's is that."""
    case = EVERY["dropped-in-one"]
    tensors, douts = make_all(case)
    count = len(case.rows)
    grads = results(case, tensors, douts, backend)[count:]
    assert [g.data_ptr() for g in grads[:count]] == [d.data_ptr() for d in douts]
    assert grads[count].data_ptr() == douts[0].data_ptr()
    assert grads[count + 1].data_ptr() != douts[1].data_ptr()


@needs_cpu_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_threads_or_runs(dtype):
    case = EVERY["many-chunks"]
    call = (case, *make_all(case, dtype), "cpu")
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            found.append(results(*call))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", ["absent-of-three", "dropped-and-absent", "one-stream"])
def test_gradcheck_of_the_reference(name):
    case = EVERY[name]._replace(channels=3)
    leaves = [t.requires_grad_() for kind in make_all(case, torch.float64)[0] for t in kind]
    count = len(case.rows)

    def run(*tensors):
        return tuple(
            residual_add(tensors[:count], tensors[count:], **options(case), backend="reference")
        )

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@kernel_backends
def test_other_derivatives_name_the_reference(backend):
    case = EVERY["two-streams"]
    (streams, branches), _ = make_all(case)
    x = streams[0].requires_grad_()
    call = {"n_bottlenecks": case.slots, "backend": backend}
    out = residual_add(streams, branches, **call)[0]
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
        torch.func.jvp(
            lambda t: residual_add([t, streams[1]], branches, **call)[0], (x,), (x.detach(),)
        )


@kernel_backends
def test_a_plain_sum_has_second_derivatives(backend):
    (streams, branches), _ = make_all(EVERY["no-slots"])
    x = streams[0].requires_grad_()
    out = residual_add(streams, branches, backend=backend)[0]
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    torch.testing.assert_close(*torch.autograd.grad(grad.sum(), x), torch.full_like(x, 2))


@backends
def test_autocast_casts_the_branch_to_its_stream(backend):
    streams, branches = make_all(EVERY["two-streams"])[0]
    branches = [branch.bfloat16() for branch in branches]
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        sums = residual_add(streams, branches, backend=backend)
    assert {t.dtype for t in sums} == {torch.float32}
    with pytest.raises(TypeError, match=r"branches\[0\] must have dtype torch.float32"):
        residual_add(streams, branches, backend=backend)


@kernel_backends
@pytest.mark.parametrize("name", ["two-streams", "dropped-in-one", "absent-of-three"])
def test_opcheck(name, backend):
    case = EVERY[name]
    (streams, branches), douts = make_all(case)
    none = [None] * len(streams)
    rest = (make_keep(case) or none, make_lengths(case) or none, case.slots, backend)
    torch.library.opcheck(ops.residual_add_fwd, (streams, branches, *rest))
    torch.library.opcheck(ops.residual_add_bwd, (douts, *rest))


@needs_cpu_kernels
def test_auto_leaves_a_plain_sum_to_torch(monkeypatch):
    """There is nothing to fuse; with slots or dropped branches the kernel runs."""
    monkeypatch.setitem(dispatch.CPU_WINS_IN, "residual_add", {torch.float32: 0})
    xs = [torch.zeros(1, rows, 8) for rows in (9, 5)]
    keep = [torch.ones(1, dtype=torch.bool), None]
    for call in ({}, {"n_bottlenecks": 4}, {"keep": keep}):
        with OwnOperators() as operators:
            residual_add(xs, xs, **call)
            residual_add(xs[:1], xs[:1], n_bottlenecks=4)
        assert operators.seen == [ops.residual_add_fwd] * bool(call)


X, K = torch.zeros(2, 4, 3), torch.ones(2, dtype=torch.bool)
BAD = {
    "streams": ((X, [X]), {}, TypeError, "streams must be a sequence of tensors"),
    "dtypes": (([X, X.half()], [X, X]), {}, TypeError, r"streams\[1\] must have"),
    "branches count": (([X], [X, X]), {}, ValueError, "branches must have 1 entries"),
    "branches type": (([X], X), {}, TypeError, "branches must be a sequence"),
    "no branch": (([X], [None]), {}, TypeError, r"branches\[0\] must be a tensor, got None"),
    "branch shape": (
        ([X], [X[:1]]), {}, ValueError,
        r"branches\[0\] must have shape \[2, 4, 3\] like streams\[0\], got \[1, 4, 3\]",
    ),
    "branch device": (([X], [X.to("meta")]), {}, ValueError, r"branches\[0\] must be on cpu"),
    "keep count": (([X], [X]), {"keep": []}, ValueError, "keep must have 1 entries like streams"),
    "keep type": (([X], [X]), {"keep": [1]}, TypeError, r"keep\[0\] must be a bool tensor"),
    "keep shape": (
        ([X], [X]), {"keep": [K[:1]]}, ValueError, r"keep\[0\] must have shape \[2\], got \[1\]",
    ),
    "slots": (([X], [X]), {"n_bottlenecks": 5}, ValueError, "n_bottlenecks = 5 rows"),
    "lengths": (([X], [X]), {"lengths": [1]}, TypeError, r"lengths\[0\] must be an int32"),
    "backend": (([X], [X]), {"backend": "fast"}, ValueError, "backend must be one of auto"),
    "sdpa": (
        ([X], [X]), {"backend": "sdpa"}, dispatch.BackendError, "does not implement residual_add",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "given", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(call, given, error, message):
    with pytest.raises(error, match=message):
        residual_add(*call, **given)
