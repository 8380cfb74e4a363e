"""Attention by the C++ kernels on every instruction set: threads, blocks, precision."""

import math

import pytest
import torch
from attention_cases import CASES, Case, launch, make_lengths, make_qkv, stated_independently

from mbt_fast import bottleneck_attention
from mbt_fast.dispatch import BackendError
from mbt_fast.ops import cpu, extension
from mbt_fast.testing import assert_close_to_exact
from mbt_fast.testing.inputs import random_call, run_call

CPU = torch.device("cpu")
WHY_NOT = extension.why_no_cpu_kernels()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason="; ".join(WHY_NOT) or "-")

SETS = [] if WHY_NOT else extension.module().instruction_sets()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(params=SETS)
def instruction_set(request, monkeypatch):
    monkeypatch.setenv("MBT_FAST_CPU", request.param)
    return request.param


@pytest.fixture
def threads():
    """Set the number of threads; it is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def assert_within_tolerance(call, dtype):
    actual, eager, exact = (
        run_call(call, backend, cast)
        for backend, cast in (("cpu", dtype), ("reference", dtype), ("reference", torch.float64))
    )
    for kind, results in actual.items():
        for triple in zip(results, eager[kind], exact[kind], strict=True):
            assert_close_to_exact(*triple, name=kind)


@dtypes
@pytest.mark.parametrize("seed", range(100, 108))
def test_random_call_on_every_instruction_set(instruction_set, dtype, seed):
    """Gradients too, and in float32: benchmarks/tolerance.py counts none beyond the rule."""
    assert_within_tolerance(random_call(seed, CPU), dtype)


@pytest.mark.parametrize("head_dim", [*range(16, 34), 47, 49, 79, 80, 81, 97, 111, 112, 127, 128])
def test_head_dimension_of_every_remainder(instruction_set, head_dim):
    case = Case(1, (11,), 2, 1, head_dim)
    qkv = make_qkv(case)
    (exact,), _ = stated_independently(case, qkv)
    (eager,) = bottleneck_attention(qkv, 2, backend="reference")
    (actual,) = bottleneck_attention(qkv, 2, backend="cpu")
    assert_close_to_exact(actual, eager, exact)


@dtypes
@pytest.mark.parametrize(
    "rows", [1, 2, 7, 8, 15, 16, 17, 24, 25, 47, 48, 49, 64, 65, 95, 96, 97, 193]
)
def test_rows_around_the_borders_of_blocks(instruction_set, dtype, rows):
    """Queries come in blocks of 48 or 64, keys of 48 or 96, bfloat16 keys in pairs or by 32."""
    call = random_call(0, CPU)._replace(
        qkv=[torch.randn(1, rows, 3, 2, 48)], n_bottlenecks=1, options={"update": None}
    )
    assert_within_tolerance(call, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [(1573, 405), (3142, 406)], ids=str)
def test_streams_as_long_as_those_of_mbt(instruction_set, dtype, rows):
    """Many blocks of keys and queries: running maxima, and sums over all of them."""
    lengths = [torch.tensor([rows[0] - 37], dtype=torch.int32), None]
    call = random_call(0, CPU)._replace(
        qkv=[torch.randn(1, count, 3, 1, 64) for count in rows],
        n_bottlenecks=4,
        options={"lengths": lengths, "update": "mean"},
    )
    assert_within_tolerance(call, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(instruction_set, threads, dtype):
    """16 threads split heads between queries; 1 does not."""
    qkv = [torch.randn(2, rows, 3, 2, 32).to(dtype) for rows in (301, 70)]
    lengths = [torch.tensor([297, 40], dtype=torch.int32), None]
    results = []
    for count in (1, 2, 3, 16, 1):
        threads(count)
        leaves = [stream.clone().requires_grad_() for stream in qkv]
        outs, lses = bottleneck_attention(
            leaves, 4, lengths=lengths, update="mean", return_lse=True, backend="cpu"
        )
        grads = torch.autograd.grad(sum(out.float().square().sum() for out in outs), leaves)
        results.append([*outs, *lses, *grads])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@dtypes
@pytest.mark.parametrize("size", [10, 30, 100])
def test_saturated_softmax_within_tolerance(instruction_set, dtype, size):
    """Logits up to size ** 2 times those of unit normals: 1e4 and beyond."""
    query_and_key = torch.tensor([size, size, 1.0])[:, None, None]
    call = random_call(0, CPU)._replace(
        qkv=[query_and_key * torch.randn(2, 131, 3, 1, 64)], n_bottlenecks=4, options={}
    )
    assert_within_tolerance(call, dtype)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
def test_infinity_and_nan_propagate_as_in_sdpa(instruction_set, which, value):
    (stream,) = make_qkv(Case(1, (101,), 0, 2, 16))
    stream[0, 70, which, 1, 3] = value
    (actual,) = bottleneck_attention([stream], 0, backend="cpu")
    (expected,) = bottleneck_attention([stream], 0, backend="sdpa")
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(actual), kind(expected))


def test_equal_scores_give_the_mean_of_the_values(instruction_set):
    """exp2(0) is exactly 1, and its sum is exact."""
    stream = torch.zeros(1, 64, 3, 1, 16)
    stream[:, :, 2] = torch.arange(64.0)[None, :, None, None]
    (out,), (lse,) = bottleneck_attention([stream], 0, return_lse=True, backend="cpu")
    assert torch.equal(out, torch.full_like(out, 31.5))
    torch.testing.assert_close(lse, torch.full_like(lse, math.log(64)))


@pytest.mark.parametrize("size", [1e6, 1e15])
def test_equal_scores_of_huge_size_do_not_become_nan(instruction_set, size):
    """A fused multiply-subtract would exceed the rounded maximum by its rounding."""
    stream = torch.full((1, 50, 3, 1, 16), 1.1)
    stream[:, :, :2] *= size
    (out,) = bottleneck_attention([stream], 0, backend="cpu")
    torch.testing.assert_close(out, torch.full_like(out, 1.1))


def test_one_key_passes_no_gradient_to_query_and_key(instruction_set):
    stream = torch.randn(2, 1, 3, 2, 64, requires_grad=True)
    (out,) = bottleneck_attention([stream], 0, backend="cpu")
    (grad,) = torch.autograd.grad(out, stream, torch.randn_like(out))
    assert torch.equal(grad[:, :, :2], torch.zeros_like(grad[:, :, :2]))


def test_negative_lengths_are_absent_and_long_ones_whole(instruction_set):
    """Values are checked before; the kernel itself must not read outside in any case."""
    qkv = make_qkv(Case(2, (9,), 2, 1, 16))
    wrong = torch.tensor([-3, 99], dtype=torch.int32)
    (out,), *_ = launch(cpu.bottleneck_attention_fwd, qkv, [wrong], 2, False)
    (whole,) = bottleneck_attention(qkv, 2, backend="cpu")
    assert out[0].eq(0).all()
    assert torch.equal(out[1], whole[1])


def test_unknown_instruction_set_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("MBT_FAST_CPU", "avx1024")
    (reason,) = extension.why_no_cpu_kernels()
    assert reason.startswith("MBT_FAST_CPU must be one of")
    assert reason.endswith("got 'avx1024'")
    with pytest.raises((ValueError, BackendError), match="avx1024"):
        bottleneck_attention(make_qkv(CASES["one-stream"]), 3, backend="cpu")


def test_calls_from_several_threads_at_once(instruction_set):
    """Scratch memory belongs to a call."""
    from concurrent.futures import ThreadPoolExecutor

    case = CASES["padding"]
    qkv, lengths = make_qkv(case), make_lengths(case)

    def run(_):
        return bottleneck_attention(qkv, case.slots, lengths=lengths, backend="cpu")

    expected = run(0)
    with ThreadPoolExecutor(4) as pool:
        for outs in pool.map(run, range(16)):
            assert all(torch.equal(a, b) for a, b in zip(outs, expected, strict=True))


def test_tangent_is_refused_and_not_dropped():
    """An operator without a forward-mode formula returned a result without one."""
    (stream,) = make_qkv(Case(1, (130,), 4, 2, 16))
    for backend in ("cpu", "auto"):
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
            torch.func.jvp(
                lambda x, b=backend: bottleneck_attention([x], 4, backend=b)[0],
                (stream,),
                (torch.randn_like(stream),),
            )


def test_vjps_of_several_gradients_at_once():
    """vmap over the backward alone: what the forward saved is not mapped."""
    stream = torch.randn(1, 60, 3, 2, 16)

    def attend(x):
        return bottleneck_attention([x], 4, update="mean", backend="cpu")[0]

    out, vjp = torch.func.vjp(attend, stream)
    douts = torch.randn(3, *out.shape)
    (batched,) = torch.func.vmap(vjp)(douts)
    for dout, grad in zip(douts, batched, strict=True):
        assert torch.equal(grad, vjp(dout)[0])


@pytest.mark.parametrize("which", ["query", "key"])
def test_infinite_scores_in_one_key_leave_finite_gradients(instruction_set, which):
    """A key with probability 0 everywhere; queries beyond the last must not meet its infinity."""
    stream = torch.randn(1, 50, 3, 1, 16)
    stream[:, :, 0, :, 0] = stream[:, :, 0, :, 0].abs() + 1
    if which == "key":
        stream[0, 7, 1, 0, 0] = -math.inf
    results = []
    for backend in ("cpu", "reference"):
        leaf = stream.clone().requires_grad_()
        (out,) = bottleneck_attention([leaf], 0, backend=backend)
        (grad,) = torch.autograd.grad(out.square().sum(), leaf)
        results.append((out, grad))
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual.isnan(), expected.isnan())
        torch.testing.assert_close(actual, expected, equal_nan=True)


def test_launcher_checks_what_reaches_raw_memory():
    """A graph that was traced on the CPU may be run elsewhere, or get another dtype."""
    operator = torch.ops.mbt_fast.bottleneck_attention_fwd.cpu
    (stream,) = make_qkv(Case(1, (9,), 0, 1, 16))
    with pytest.raises(TypeError, match=r"lengths must have dtype torch.int32, got torch.int64"):
        operator([stream], [torch.tensor([9])], 0, False, 0.25, False)
    with pytest.raises(ValueError, match="qkv must be on the CPU for backend 'cpu', got meta"):
        launch(cpu.bottleneck_attention_fwd, [stream.to("meta")], [None], 0, False)
