"""The layer ops under the tools that look through them, their backends, and their errors."""

import pytest
import torch
from layer_cases import (
    CASES,
    DEVICE,
    DTYPES,
    approximations,
    backends,
    kernel_backends,
    make,
    make_keep,
    make_lengths,
    needs_cpu_kernels,
    runs,
)
from torch.nn.functional import gelu

from mbt_fast import dispatch, ops
from mbt_fast.functional import add_layer_norm, bias_gelu, residual_add


def norm_and_gelu(case, backend):
    """Both ops as a function of flat tensors: streams, branches, weights, biases."""
    marks = {"keep": make_keep(case), "lengths": make_lengths(case)}

    def run(*tensors):
        kinds = [list(tensors[first : first + 2]) for first in range(0, 8, 2)]
        sums, normed = add_layer_norm(*kinds, **marks, n_bottlenecks=case.slots, backend=backend)
        return (*sums, *(bias_gelu(n, kinds[3][0], backend=backend) for n in normed))

    return run


def sums(case, backend):
    """The residual sum as a function of flat tensors: streams, branches."""
    marks = {"keep": make_keep(case), "lengths": make_lengths(case)}

    def run(*tensors):
        kinds = tensors[:2], tensors[2:]
        return tuple(residual_add(*kinds, **marks, n_bottlenecks=case.slots, backend=backend))

    return run


FUNCTIONS = {norm_and_gelu: 4, sums: 2}  # how many kinds of tensors each takes
functions = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


def flat(case, function):
    """Tensors of two streams for the function."""
    return [tensor for kind in make(case)[: FUNCTIONS[function]] for tensor in kind]


@backends
@functions
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_fullgraph_equals_eager(function, backend, dynamic):
    case = CASES["dropped-and-absent"]
    run = function(case, backend)
    leaves = [t.requires_grad_() for t in flat(case, function)]
    expected, actual = (
        f(*leaves) for f in (run, torch.compile(run, fullgraph=True, dynamic=dynamic))
    )
    torch.testing.assert_close(actual, expected)
    losses = [sum(t.square().sum() for t in results) for results in (actual, expected)]
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaves) for loss in losses))


@backends
@functions
def test_export_equals_eager(function, backend):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return function(CASES["two-streams"], backend)(*tensors)

    tensors = tuple(flat(CASES["two-streams"], function))
    program = torch.export.export(Module(), tensors)
    torch.testing.assert_close(program.module()(*tensors), Module()(*tensors))


@backends
@functions
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, on the CPU
def test_vmap_and_func_grad(function, backend):
    case = CASES["dropped-and-absent"]
    run = function(case, backend)
    examples = [flat(case, function) for _ in range(3)]
    batches = [torch.stack(parts) for parts in zip(*examples, strict=True)]
    mapped = torch.vmap(run)(*batches)
    expected = [torch.stack(parts) for parts in zip(*(run(*e) for e in examples), strict=True)]
    torch.testing.assert_close(list(mapped), expected)

    def loss(*tensors):
        return sum(out.square().sum() for out in run(*tensors))

    tensors = [*batches[:4], *(batch[0] for batch in batches[4:])]
    every = tuple(range(len(tensors)))
    dims = (0, 0, 0, 0, None, None, None, None)  # parameters alike, gradients per example
    gradient = torch.func.grad(loss, argnums=every)
    grads = torch.vmap(gradient, in_dims=dims[: len(tensors)])(*tensors)
    first = [t.clone().requires_grad_() for t in examples[0]]
    torch.testing.assert_close(
        [g[0] for g in grads], list(torch.autograd.grad(loss(*first), first))
    )


@kernel_backends
@pytest.mark.parametrize("name", ["two-streams", "no-branch", "dropped-and-absent"])
def test_opcheck_of_layer_norm(name, backend):
    case = CASES[name]
    streams, branches, weights, biases = make(case)
    marks = [entries or [None, None] for entries in (make_keep(case), make_lengths(case))]
    call = (streams, branches, weights, biases, *marks, case.slots, 1e-6, backend)
    torch.library.opcheck(ops.add_layer_norm_fwd, call)
    results = ops.add_layer_norm_fwd(*call)
    dnormed = [torch.randn_like(s) for s in streams]
    rest = (dnormed, streams, results[4:], weights, *marks, case.slots, backend)
    torch.library.opcheck(ops.add_layer_norm_bwd, ([None, dnormed[1]], *rest))


@kernel_backends
@approximations
@pytest.mark.parametrize("with_bias", [False, True])
def test_opcheck_of_gelu(approximate, with_bias, backend):
    if not runs(backend, dispatch.GELU[approximate]):
        pytest.skip(f"{backend} has no GELU {approximate!r}")
    x, dout = torch.randn(4, 5, 16, device=DEVICE).transpose(0, 1), torch.randn(5, 4, 16)
    bias = torch.randn(16, device=DEVICE) if with_bias else None
    torch.library.opcheck(ops.bias_gelu_fwd, (x, bias, approximate, backend))
    call = (dout.to(DEVICE), x, bias, approximate, backend)
    torch.library.opcheck(ops.bias_gelu_bwd, call)


@needs_cpu_kernels
def test_auto_takes_the_kernels_where_they_win():
    def taken(op, dtype, elements):
        return dispatch.select(dispatch.Call(op, torch.device("cpu"), dtype, elements=elements))

    for op, dtypes_from in dispatch.CPU_WINS_IN.items():
        for dtype in (*DTYPES, torch.float64):
            least = dtypes_from.get(dtype, 2**40)
            assert taken(op, dtype, least) == ("cpu" if dtype in dtypes_from else "reference")
            assert taken(op, dtype, least - 1) == "reference"
    small = dispatch.Call("bias_gelu", torch.device("cpu"), torch.float32, elements=9)
    erf = dispatch.Call("bias_gelu_erf", torch.device("cpu"), torch.float32)
    assert (
        "cpu        only by name: the call has 9 elements, and it wins from 65536"
        in dispatch.format_table(small)
    )
    assert "cpu        only by name: bias_gelu_erf in torch.float32" in dispatch.format_table(erf)
    assert dispatch.select(small, "cpu") == dispatch.select(erf, "cpu") == "cpu"


def test_auto_is_torchs_own_gelu_where_the_kernels_do_not_run():
    x = torch.randn(300, 300, dtype=torch.float64)
    assert torch.equal(bias_gelu(x), gelu(x, approximate="tanh"))
    with pytest.raises(dispatch.BackendError, match=r"sdpa +no: it does not implement bias_gelu"):
        bias_gelu(x, backend="sdpa")


X, W, K = torch.zeros(2, 4, 3), torch.zeros(3), torch.ones(2, dtype=torch.bool)
BAD_GELU = {
    "not a tensor": ((1,), {}, TypeError, "x must be a tensor, got 1"),
    "integers": ((X.int(),), {}, TypeError, "x must be float16"),
    "scalar": (
        (torch.tensor(1.0),),
        {},
        ValueError,
        r"x must have shape \[\.\.\., C\], got a scalar",
    ),
    "bias shape": ((X, W[:2]), {}, ValueError, r"bias must have shape \[3\].*got \[2\]"),
    "bias dtype": ((X, W.double()), {}, TypeError, "bias must be torch.float32 like x"),
    "bias type": ((X, 1), {}, TypeError, "bias must be a tensor, got 1"),
    "bias device": ((X, W.to("meta")), {}, ValueError, "bias must be on cpu like x, got meta"),
    "approximate": (
        (X,),
        {"approximate": "erf"},
        ValueError,
        "approximate must be 'none' or 'tanh'",
    ),
    "backend": ((X,), {"backend": "fast"}, ValueError, "backend must be one of auto"),
}
BAD_NORM = {
    "streams": ((X, None, [W], [W]), {}, TypeError, "streams must be a sequence of tensors"),
    "no channels": (([X[..., :0]], None, [W], [W]), {}, ValueError, "at least 1 channel"),
    "dtypes": (([X, X.half()], None, [W] * 2, [W] * 2), {}, TypeError, r"streams\[1\] must have"),
    "branches count": (([X], [X, X], [W], [W]), {}, ValueError, "branches must have 1 entries"),
    "branches type": (([X], X, [W], [W]), {}, TypeError, "branches must be a sequence"),
    "branch shape": (([X], [X[:1]], [W], [W]), {}, ValueError, r"branches\[0\] must have shape"),
    "branch type": (([X], [1], [W], [W]), {}, TypeError, r"branches\[0\] must be a tensor, got 1"),
    "weights count": (([X], None, [], [W]), {}, ValueError, "weights must have 1 entries"),
    "weight shape": (([X], None, [W[:2]], [W]), {}, ValueError, r"weights\[0\] must have shape"),
    "weight none": (([X], None, [None], [W]), {}, TypeError, r"weights\[0\] must be a tensor"),
    "bias dtype": (
        ([X.half()], None, [W.half()], [W]), {}, TypeError,
        r"biases\[0\] must have dtype torch.float16 like weights\[0\], got torch.float32",
    ),
    "keep type": (([X], [X], [W], [W]), {"keep": [1]}, TypeError, r"keep\[0\] must be a bool"),
    "keep dtype": (([X], [X], [W], [W]), {"keep": [W]}, TypeError, "got a tensor of torch.float32"),
    "keep shape": (
        ([X], [X], [W], [W]), {"keep": [K[:1]]}, ValueError,
        r"keep\[0\] must have shape \[2\], got \[1\]",
    ),
    "keep device": (
        ([X], [X], [W], [W]), {"keep": [K.to("meta")]}, ValueError,
        r"keep\[0\] must be on cpu like branches\[0\], got meta",
    ),
    "keep of nothing": (
        ([X], None, [W], [W]), {"keep": [K]}, ValueError,
        r"keep\[0\] must be None like branches\[0\], got a tensor of torch.bool",
    ),
    "eps type": (([X], None, [W], [W]), {"eps": "1"}, TypeError, "eps must be a number, got '1'"),
    "eps": (([X], None, [W], [W]), {"eps": -1.0}, ValueError, r"eps must be at least 0, got -1\.0"),
    "slots": (([X], None, [W], [W]), {"n_bottlenecks": 5}, ValueError, "n_bottlenecks = 5 rows"),
    "lengths": (([X], None, [W], [W]), {"lengths": [1]}, TypeError, r"lengths\[0\] must be an"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "options", "error", "message"), BAD_GELU.values(), ids=BAD_GELU)
def test_bad_arguments_of_gelu_are_named(call, options, error, message):
    with pytest.raises(error, match=message):
        bias_gelu(*call, **options)


@pytest.mark.parametrize(("call", "options", "error", "message"), BAD_NORM.values(), ids=BAD_NORM)
def test_bad_arguments_of_layer_norm_are_named(call, options, error, message):
    with pytest.raises(error, match=message):
        add_layer_norm(*call, **options)
