"""Bottleneck attention under the tools that look through it."""

from functools import partial

import pytest
import torch
from attention_cases import BACKENDS, CASES, make_lengths, make_qkv, widest
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import mbt_fast
from mbt_fast import bottleneck_attention, ops

backends = pytest.mark.parametrize("backend", BACKENDS)
TRACED = {name: CASES[name] for name in ("two-streams", "padding")}
traced = pytest.mark.parametrize("case", TRACED.values(), ids=TRACED.keys())


def call(case, backend):
    """A call as a function of its streams."""
    lengths = make_lengths(case)

    def run(*qkv):
        outs, lses = bottleneck_attention(
            qkv, case.slots, lengths=lengths, update="mean", return_lse=True, backend=backend
        )
        return (*outs, *(lse.masked_fill(lse.isinf(), 0) for lse in lses))

    return run


def compiled_dtype(backend):
    """The widest, but for torch 2.11, which compiles no backward of its attention in float64.

    ``expected scalar type Double but found Float``, of torch alone, on a CPU.
    """
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    return torch.float32 if backend == "sdpa" and version < (2, 13) else widest(backend)


def total(outputs):
    return sum(out.square().sum() for out in outputs)


@traced
@backends
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_fullgraph_equals_eager(case, backend, dynamic):
    run = call(case, backend)
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic)
    qkv = make_qkv(case, compiled_dtype(backend), requires_grad=True)
    expected = run(*qkv)
    actual = compiled(*qkv)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(total(actual), qkv), torch.autograd.grad(total(expected), qkv)
    )


@traced
@backends
def test_export_equals_eager(case, backend):
    class Module(torch.nn.Module):
        def forward(self, *qkv):
            return call(case, backend)(*qkv)

    qkv = make_qkv(case)
    program = torch.export.export(Module(), tuple(qkv))
    torch.testing.assert_close(program.module()(*qkv), call(case, backend)(*qkv))


def test_export_keeps_dynamic_lengths():
    class Module(torch.nn.Module):
        def forward(self, first, second):
            return bottleneck_attention([first, second], 4)

    case = CASES["two-streams"]
    rows = torch.export.Dim("rows", min=5, max=4096)
    program = torch.export.export(Module(), tuple(make_qkv(case)), dynamic_shapes=({1: rows}, None))
    longer = make_qkv(case._replace(own=(50, case.own[1])))
    torch.testing.assert_close(program.module()(*longer), bottleneck_attention(longer, 4))


def closed_form(case):
    """Two products of 2 FLOPs per multiply-add, over all pairs of rows of a stream."""
    rows = [own + case.slots for own in case.own]
    return sum(4 * case.batch * case.heads * s * s * case.head_dim for s in rows)


@backends
def test_flop_counter_equals_closed_form(backend):
    case = CASES["two-streams"]
    qkv = make_qkv(case, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        outs = bottleneck_attention(qkv, case.slots, backend=backend)
    assert forward.get_total_flops() == closed_form(case)
    with FlopCounterMode(display=False) as backward:
        total(outs).backward()
    products = 4 if backend == "reference" else 5  # a fused backward recomputes the scores
    assert backward.get_total_flops() == products * closed_form(case) // 2


def test_flop_counter_sees_the_lse():
    case = CASES["two-streams"]
    qkv = make_qkv(case, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        _, lses = bottleneck_attention(qkv, case.slots, return_lse=True, backend="sdpa")
    assert forward.get_total_flops() == closed_form(case) * 3 // 2
    with FlopCounterMode(display=False) as backward:
        sum(lse.sum() for lse in lses).backward()
    assert backward.get_total_flops() == closed_form(case) * 3 // 2


@backends
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, on the CPU
def test_vmap_and_func_grad(backend):
    run = call(CASES["padding"], backend)
    examples = [make_qkv(CASES["padding"], widest(backend)) for _ in range(3)]
    batches = [torch.stack(streams) for streams in zip(*examples, strict=True)]
    expected = [run(*streams) for streams in zip(*batches, strict=True)]
    mapped = torch.vmap(run)(*batches)
    for index, outputs in enumerate(zip(*expected, strict=True)):
        torch.testing.assert_close(mapped[index], torch.stack(outputs))

    def loss(*streams):
        return total(run(*streams))

    grads = torch.vmap(torch.func.grad(loss))(*batches)
    first = [batch[0].clone().requires_grad_() for batch in batches]
    (expected_grad,) = torch.autograd.grad(loss(*first), first[:1])
    torch.testing.assert_close(grads[0], expected_grad)


class CountAttention(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts forward calls of fused attention and of our own operator."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in mbt_fast.recompute.SAVED_OPS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_checkpoint_policy_saves_the_recomputation_of_attention(backend):
    case = CASES["two-streams"]
    run = call(case, backend)
    counts, grads, data = {}, {}, make_qkv(case, widest(backend))
    contexts = partial(create_selective_checkpoint_contexts, mbt_fast.checkpoint_policy)
    for name, options in {"plain": {}, "selective": {"context_fn": contexts}}.items():
        qkv = [stream.clone().requires_grad_() for stream in data]
        with CountAttention() as counter:
            outputs = checkpoint(lambda *s: run(*s), *qkv, use_reentrant=False, **options)
            grads[name] = torch.autograd.grad(total(outputs), qkv)
        counts[name] = counter.count
    calls = 2 * len(case.own) if backend == "sdpa" else 1  # attention and lse per stream, or all
    assert counts == {"plain": 2 * calls, "selective": calls}
    torch.testing.assert_close(*grads.values())


LSE_LAYOUTS = {
    "contiguous": lambda: torch.randn(2, 2, 300, 16),  # more rows than one chunk
    "heads last": lambda: torch.randn(2, 5, 2, 16).transpose(1, 2),
    "dense permuted": lambda: torch.randn(16, 5, 2, 2).permute(3, 2, 1, 0),
    "no rows": lambda: torch.randn(2, 2, 0, 16),
}


@pytest.mark.parametrize("layout", LSE_LAYOUTS)
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(layout, masked):
    query, key = LSE_LAYOUTS[layout](), LSE_LAYOUTS[layout]()
    valid = torch.rand(2, key.shape[2]) > 0.5 if masked else None
    torch.library.opcheck(ops.attention_lse_fwd, (query, key, valid, 0.3))
    lse = ops.attention_lse_fwd(query, key, valid, 0.3)
    grads = (torch.randn_like(lse), query, key, valid, 0.3)
    torch.library.opcheck(ops.attention_lse_bwd, grads)


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs TRITON_INTERPRET=1 or a GPU")
@traced
@pytest.mark.parametrize("update_mean", [False, True])
def test_opcheck_of_the_kernel_pair(case, update_mean):
    qkv = make_qkv(case)
    lengths = make_lengths(case) or [None] * len(qkv)
    call = (lengths, case.slots, update_mean, 0.25, "triton")
    torch.library.opcheck(ops.bottleneck_attention_fwd, (qkv, *call))
    permuted = [stream.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0) for stream in qkv]
    torch.library.opcheck(ops.bottleneck_attention_fwd, (permuted, *call))
    results = ops.bottleneck_attention_fwd(qkv, *call)
    count = len(qkv)
    saved = [*results[:count], *results[2 * count :]]
    douts = [torch.randn_like(out) for out in saved[:count]]
    dlses = [None, *(torch.randn_like(lse) for lse in results[count + 1 : 2 * count])]
    torch.library.opcheck(ops.bottleneck_attention_bwd, (douts, dlses, saved, qkv, *call))
