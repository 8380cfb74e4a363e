"""Every op under the tools that look through it, from torch.compile to FLOP counters."""

from functools import partial
from typing import NamedTuple

import attention_cases
import layer_cases
import pytest
import torch
from attention_cases import make_qkv
from backends import BACKENDS, DEVICE, OwnCalls, backends, backends_of, kernels_of, widest
from layer_cases import flat, like
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import mbt_fast
from mbt_fast.functional import bias_gelu, bottleneck_attention, dense_attention, linear


class Function(NamedTuple):
    """An op, with some options and some case, as a function of tensors."""

    op: str
    make: object  # dtype -> tensors
    run: object  # (backend, *tensors) -> tuple of results
    parameters: int = 0  # the last tensors, which have no batch

    def on(self, backend):
        return partial(self.run, backend)


def attention(name, update="mean"):
    case = attention_cases.CASES[name]
    lengths = attention_cases.make_lengths(case)

    def run(backend, *qkv):
        outs, lses = bottleneck_attention(
            qkv, case.slots, lengths=lengths, update=update, return_lse=True, backend=backend
        )
        return (*outs, *(lse.masked_fill(lse.isinf(), 0) for lse in lses))

    return Function("bottleneck_attention", lambda dtype: make_qkv(case, dtype), run)


def layer(op, name):
    case = layer_cases.CASES[name]

    tensors, count = op.make(case), len(case.rows)

    def run(backend, *leaves):
        rest = iter(leaves)
        return tuple(op.run(case, like(tensors, lambda t: next(rest)), backend))

    parameters = count * sum(kind >= 2 for kind in op.kinds)
    return Function(op.name, lambda dtype: flat(op.make(case, dtype)), run, parameters)


def gelu_alone(op, approximate):
    def run(backend, *xs):
        return tuple(bias_gelu(x, approximate=approximate, backend=backend) for x in xs)

    shape = (4, 5, 16)
    return Function(op, lambda d: [torch.randn(shape, device=DEVICE, dtype=d) for _ in "ab"], run)


def linear_alone(with_bias):
    def run(backend, *tensors):
        return (linear(*tensors, backend=backend),) * 2

    shapes = ((4, 5, 16), (24, 16), (24,))[: 3 if with_bias else 2]
    make = lambda dtype: [torch.randn(s, device=DEVICE, dtype=dtype) for s in shapes]  # noqa: E731
    return Function("linear", make, run, len(shapes) - 1)


def dense(backend, query, key, value):
    return (dense_attention(query, key, value, backend=backend),)


FUNCTIONS = {
    "attention": attention("two-streams"),
    "attention with padding": attention("padding"),
    "linear": linear_alone(True),
    "dense attention": Function(
        "dense_attention",
        lambda d: [torch.randn(2, 3, s, 16, device=DEVICE, dtype=d) for s in (5, 9, 9)],
        dense,
    ),
    **{n: layer(op, "dropped-and-absent") for n, op in layer_cases.OPS.items()},
}


def functions(names, of=FUNCTIONS):
    each = [
        pytest.param(FUNCTIONS[n], b, id=f"{n}-{b}") for n in of for b in names(FUNCTIONS[n].op)
    ]
    return pytest.mark.parametrize(("function", "backend"), each)


def total(outputs):
    return sum(out.square().sum() for out in outputs)


def assert_compiled_equals_eager(function, on, **options):
    def run(*tensors):
        return function.run(on, *tensors)

    compiled = torch.compile(run, fullgraph=True, **options)
    tensors = [t.requires_grad_() for t in function.make(torch.float32)]
    expected, actual = run(*tensors), compiled(*tensors)
    torch.testing.assert_close(actual, expected)
    grads = (torch.autograd.grad(total(outs), tensors) for outs in (actual, expected))
    torch.testing.assert_close(*grads)


@functions(backends_of)
@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_fullgraph_equals_eager(function, backend, dynamic):
    assert_compiled_equals_eager(function, backend, dynamic=dynamic, backend="aot_eager")


@pytest.mark.slow
@functions(lambda op: kernels_of(op)[-1:] or ["sdpa"], sorted(FUNCTIONS.keys() - {"attention"}))
@pytest.mark.usefixtures("fresh_dynamo", "inductor")
def test_inductor_equals_eager(function, backend):
    assert_compiled_equals_eager(function, backend)


@functions(backends_of)
def test_export_equals_eager(function, backend):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return function.run(backend, *tensors)

    tensors = tuple(function.make(torch.float32))
    program = torch.export.export(Module(), tensors)
    torch.testing.assert_close(program.module()(*tensors), Module()(*tensors))


def test_export_keeps_dynamic_lengths():
    class Module(torch.nn.Module):
        def forward(self, first, second):
            return bottleneck_attention([first, second], 4)

    case = attention_cases.CASES["two-streams"]
    rows = torch.export.Dim("rows", min=5, max=4096)
    program = torch.export.export(Module(), tuple(make_qkv(case)), dynamic_shapes=({1: rows}, None))
    longer = make_qkv(case._replace(own=(50, case.own[1])))
    torch.testing.assert_close(program.module()(*longer), bottleneck_attention(longer, 4))


@functions(backends_of, ["attention", "add_layer_norm", "residual_add"])
def test_make_fx_with_symbolic_shapes(function, backend):
    """Traced outside of torch.compile, where head dimension and channels are symbols, too."""
    run, tensors = function.on(backend), function.make(torch.float32)
    traced = make_fx(run, tracing_mode="symbolic")(*tensors)
    torch.testing.assert_close(traced(*tensors), run(*tensors))


@functions(backends_of)
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, on the CPU
def test_vmap_and_func_grad(function, backend):
    """Over examples alone, and for gradients per example with the same parameters for all."""
    run = function.on(backend)
    examples = [function.make(widest(backend, function.op)) for _ in range(3)]
    batches = [torch.stack(parts) for parts in zip(*examples, strict=True)]
    expected = [torch.stack(parts) for parts in zip(*(run(*e) for e in examples), strict=True)]
    torch.testing.assert_close(list(torch.vmap(run)(*batches)), expected)
    count = len(batches) - function.parameters
    shared = [batch[0] for batch in batches[count:]]
    gradient = torch.func.grad(lambda *t: total(run(*t)), argnums=tuple(range(len(batches))))
    dims = (0,) * count + (None,) * function.parameters
    grads = torch.vmap(gradient, in_dims=dims)(*batches[:count], *shared)
    first = [t.clone().requires_grad_() for t in examples[0]]
    torch.testing.assert_close(
        [grad[0] for grad in grads], list(torch.autograd.grad(total(run(*first)), first))
    )


def permuted(tensor):
    """The same values, in memory in the opposite order of dimensions."""
    order = [*range(tensor.ndim)[::-1]]
    return tensor.permute(order).contiguous().permute(order)


def contiguous(tensor):
    return tensor


NORM, RESIDUAL, GELU, GELU_ERF = layer_cases.OPS.values()
OPCHECKED = {
    "attention": (attention("two-streams", update=None), permuted),
    "attention with padding": (attention("padding"), contiguous),
    "add_layer_norm": (layer(NORM, "two-streams"), permuted),
    "add_layer_norm dropped": (layer(NORM, "dropped-and-absent"), contiguous),
    "add_layer_norm without branches": (layer(NORM, "no-branch"), contiguous),
    "residual_add": (layer(RESIDUAL, "two-streams"), permuted),
    "residual_add dropped": (layer(RESIDUAL, "dropped-in-one"), contiguous),
    "residual_add of three": (layer(RESIDUAL, "absent-of-three"), contiguous),
    "bias_gelu": (layer(GELU, "two-streams"), permuted),
    "bias_gelu_erf": (layer(GELU_ERF, "two-streams"), permuted),
    "linear": (linear_alone(True), permuted),
    "linear without bias": (linear_alone(False), contiguous),
    "bias_gelu without bias": (gelu_alone("bias_gelu", "tanh"), permuted),
    "bias_gelu_erf without bias": (gelu_alone("bias_gelu_erf", "none"), permuted),
}


def opcheck_all(run, tensors):
    """Check every call of an operator of ours, forward and backward; return their names."""
    with OwnCalls() as own:
        outs = run(*tensors)
        torch.autograd.grad(total(outs[:-1]), tensors, allow_unused=True)  # the last is not used
    for operator, args, kwargs in own.calls:
        torch.library.opcheck(operator, args, kwargs)
    return set(own.names)


@pytest.mark.parametrize(
    ("function", "layout", "backend"),
    [
        pytest.param(function, layout, backend, id=f"{name}-{backend}")
        for name, (function, layout) in OPCHECKED.items()
        for backend in kernels_of(function.op)
    ],
)
def test_opcheck(function, layout, backend):
    tensors = [layout(t).requires_grad_() for t in function.make(torch.float32)]
    op = function.op.removesuffix("_erf")
    assert opcheck_all(function.on(backend), tensors) == {f"{op}_fwd", f"{op}_bwd"}


LSE_LAYOUTS = {
    "more rows than one chunk": lambda: torch.randn(2, 300, 3, 2, 16),
    "heads first": lambda: torch.randn(2, 2, 5, 3, 16).permute(0, 2, 3, 1, 4),
    "dense permuted": lambda: torch.randn(16, 2, 3, 5, 2).permute(4, 3, 2, 1, 0),
    "no rows": lambda: torch.randn(2, 0, 3, 2, 16),
}


@pytest.mark.parametrize("layout", LSE_LAYOUTS)
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck_of_the_lse(layout, masked):
    qkv = LSE_LAYOUTS[layout]()
    lengths = [torch.tensor([qkv.shape[1] // 2, qkv.shape[1]], dtype=torch.int32)]

    def run(qkv):
        _, (lse,) = bottleneck_attention(
            [qkv], 0, lengths=lengths if masked else None, return_lse=True, backend="sdpa"
        )
        return lse.masked_fill(lse.isinf(), 0), None

    assert opcheck_all(run, [qkv.requires_grad_()]) == {"attention_lse_fwd", "attention_lse_bwd"}


CASE = attention_cases.CASES["two-streams"]


def closed_form(case):
    """Two products of 2 FLOPs per multiply-add, over all pairs of rows of a stream."""
    rows = [own + case.slots for own in case.own]
    return sum(4 * case.batch * case.heads * s * s * case.head_dim for s in rows)


@backends
def test_flop_counter_equals_closed_form(backend):
    qkv = make_qkv(CASE, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        outs = bottleneck_attention(qkv, CASE.slots, backend=backend)
    assert forward.get_total_flops() == closed_form(CASE)
    with FlopCounterMode(display=False) as backward:
        total(outs).backward()
    products = 4 if backend == "reference" else 5  # a fused backward recomputes the scores
    assert backward.get_total_flops() == products * closed_form(CASE) // 2


def test_flop_counter_sees_the_lse():
    qkv = make_qkv(CASE, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        _, lses = bottleneck_attention(qkv, CASE.slots, return_lse=True, backend="sdpa")
    assert forward.get_total_flops() == closed_form(CASE) * 3 // 2
    with FlopCounterMode(display=False) as backward:
        sum(lse.sum() for lse in lses).backward()
    assert backward.get_total_flops() == closed_form(CASE) * 3 // 2


class CountAttention(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts forward calls of torch's fused attention and of our own operators."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        self.count += "attention" in name and not name.endswith(("backward", "_bwd"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_checkpoint_policy_saves_the_recomputation_of_attention(backend):
    run, data = FUNCTIONS["attention"].on(backend), make_qkv(CASE, widest(backend))
    counts, grads = {}, {}
    contexts = partial(create_selective_checkpoint_contexts, mbt_fast.checkpoint_policy)
    for name, given in {"plain": {}, "selective": {"context_fn": contexts}}.items():
        qkv = [stream.clone().requires_grad_() for stream in data]
        with CountAttention() as counter:
            outputs = checkpoint(run, *qkv, use_reentrant=False, **given)
            grads[name] = torch.autograd.grad(total(outputs), qkv)
        counts[name] = counter.count
    calls = 2 * len(CASE.own) if backend == "sdpa" else 1  # attention and lse per stream, or all
    assert counts == {"plain": 2 * calls, "selective": calls}
    torch.testing.assert_close(*grads.values())
