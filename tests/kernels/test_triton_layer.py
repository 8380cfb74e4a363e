"""The Triton kernels of the layer by themselves, under the interpreter or on a GPU."""

import ast
from pathlib import Path

import pytest
import torch
from layer_cases import BACKENDS, CASES, DEVICE, make, make_keep, make_lengths

from mbt_fast import dispatch
from mbt_fast.functional import add_layer_norm, bias_gelu, residual_add
from mbt_fast.testing import assert_close_to_exact

if "triton" not in BACKENDS:
    call = dispatch.Call("add_layer_norm", DEVICE, torch.float32)
    pytest.skip(f"no triton here:\n{dispatch.format_table(call)}", allow_module_level=True)

from mbt_fast.kernels import add_layer_norm as norm_launchers
from mbt_fast.kernels import bias_gelu as gelu_launchers
from mbt_fast.kernels import column_sums, table
from mbt_fast.kernels import residual_add as residual_launchers

FOLDER = Path(table.__file__).parent
# Forward, backward and, where parameters have gradients, its second stage.
LAUNCHERS = {"add_layer_norm.py": 3, "bias_gelu.py": 3, "residual_add.py": 2}
MODULES = (norm_launchers, gelu_launchers, residual_launchers, column_sums)


def run(case, tensors, backend):
    """Sums, normalised sums, and all gradients for gradients of one."""
    leaves = [[None if t is None else t.detach().requires_grad_() for t in k] for k in tensors]
    marks = {"keep": make_keep(case), "lengths": make_lengths(case)}
    sums, normed = add_layer_norm(*leaves, **marks, n_bottlenecks=case.slots, backend=backend)
    flat = [leaf for kind in leaves for leaf in kind if leaf is not None]
    outs = [*sums, *normed]
    return [*outs, *torch.autograd.grad(outs, flat, [torch.ones_like(out) for out in outs])]


def compare(case, dtype):
    """Triton against the reference, by the tolerance rule."""
    tensors = make(case, dtype)
    exact = [[None if t is None else t.double() for t in kind] for kind in tensors]
    runs = [(tensors, "triton"), (tensors, "reference"), (exact, "reference")]
    for results in zip(*(run(case, *call) for call in runs), strict=True):
        assert_close_to_exact(*results)


@pytest.fixture
def launches(monkeypatch):
    """Names, grids and arguments by name of all launches, which do nothing."""
    seen = []

    class Recorder:
        def __init__(self, name, kernel):
            self.name, self.arg_names = name, kernel.arg_names

        def __getitem__(self, grid):
            def launch(*args, **kwargs):
                named = dict(zip(self.arg_names, args, strict=False))
                seen.append((self.name, grid, named | kwargs))

            return launch

    for module in MODULES:
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Recorder(name, getattr(module, name)))
    return seen


def test_all_streams_take_one_launch_forward_and_two_backward(launches):
    run(CASES["three-streams"], make(CASES["three-streams"]), "triton")
    bias_gelu(
        torch.zeros(3, 8, device=DEVICE, requires_grad=True), backend="triton"
    ).sum().backward()
    assert [name for name, *_ in launches] == [
        "add_layer_norm_fwd_kernel", "add_layer_norm_bwd_kernel", "column_sums_kernel",
        "bias_gelu_fwd_kernel", "bias_gelu_bwd_kernel",
    ]  # fmt: skip


def test_a_residual_sum_takes_one_launch_each_way(launches):
    streams, branches = ([t.requires_grad_() for t in k] for k in make(CASES["three-streams"])[:2])
    sums = residual_add(streams, branches, n_bottlenecks=2, backend="triton")
    torch.autograd.grad(sums, streams, [torch.ones_like(total) for total in sums])
    assert [name for name, *_ in launches] == [
        "residual_add_fwd_kernel", "residual_add_bwd_kernel",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(70_000, 2, 16), (1, 71_280, 16), (2, 40_000, 1100)], ids=str)
def test_every_grid_has_one_axis_and_holds_all_rows(shape, launches):
    """pytorch#146704, xformers#845, flash-attention#1812: 65536 and more in grid y or z."""
    stream = torch.zeros(1, 1, 1, device=DEVICE).half().expand(shape)
    parameter = [torch.zeros(shape[-1], device=DEVICE).half()]
    norm_launchers.add_layer_norm_fwd(
        [stream], [None], parameter, parameter, [None], [None], 1, 1e-6
    )
    norm_launchers.add_layer_norm_bwd(
        [None], [stream], [stream], [torch.zeros(2, *shape[:2])], parameter, [None], [None], 1
    )
    residual_launchers.residual_add_fwd([stream], [stream], [None], [None], 1)
    residual_launchers.residual_add_bwd([stream], [None], [None], 1)
    rows = shape[0] * shape[1]
    for _, (programs,), given in (*launches[:2], *launches[3:]):
        tiles = programs * given.get("step", 1)  # a program of the backward takes several
        assert tiles * given["BLOCK_R"] >= rows
    assert max(launches[2][2]["counts"]) <= column_sums.MOST_CHUNKS


def test_rows_with_a_unit_last_stride_are_read_in_place(launches):
    wide = torch.zeros(2, 5, 40, device=DEVICE)[..., :24]
    weight = [torch.ones(24, device=DEVICE)]
    add_layer_norm([wide], [wide], weight, weight, backend="triton")
    _, _, given = launches[0]
    assert given["stream_ptrs"][0].data_ptr() == wide.data_ptr()
    assert given["branch_ptrs"][0].data_ptr() == wide.data_ptr()
    assert given["strides"] == ((200, 40),)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launch_is_guarded_by_the_device_of_its_tensors(name):
    """Liger-Kernel#1303, triton#2441, xformers#681, where there is but one GPU to see it."""
    tree = ast.parse((FOLDER / name).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    launches = [
        node for node in calls
        if "_kernel[" in ast.unparse(node.func) or ast.unparse(node.func) == "sum_columns"
    ]  # fmt: skip
    guards = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.With) and "device_of(" in ast.unparse(node.items[0].context_expr)
    ]  # fmt: skip
    assert len(launches) == LAUNCHERS[name]
    assert all(any(launch in ast.walk(guard) for guard in guards) for launch in launches)


def test_parameters_of_different_dtypes():
    """A tuple of pointers has one dtype."""
    streams = [torch.randn(2, 5, 24, device=DEVICE).half() for _ in range(2)]
    parameters = [torch.randn(24, device=DEVICE).to(d) for d in (torch.float16, torch.float32)]
    exact = [[t.double() for t in kind] for kind in (streams, parameters)]
    results = []
    for (rows, given), backend in (
        ((streams, parameters), "triton"),
        ((streams, parameters), "reference"),
        (exact, "reference"),
    ):
        weights = [t.clone().requires_grad_() for t in given]
        _, normed = add_layer_norm(rows, None, weights, given, backend=backend)
        results.append([*normed, *torch.autograd.grad(normed, weights, rows)])
    for triple in zip(*results, strict=True):
        assert_close_to_exact(*triple)


def test_more_channels_than_a_program_holds_are_refused_before_the_launch():
    assert set(dispatch.TRITON_MOST.values()) == {table.NORM_CHANNELS}
    rows = torch.zeros(1, 2, table.NORM_CHANNELS + 1, device=DEVICE)
    with pytest.raises(dispatch.BackendError, match="8193 channels, and it takes at most 8192"):
        add_layer_norm([rows], None, [rows[0, 0]], [rows[0, 0]], backend="triton")
    with pytest.raises(dispatch.BackendError, match="8193 channels, and it takes at most 8192"):
        residual_add([rows], [rows], backend="triton")
    assert bias_gelu(rows, backend="triton").eq(0).all()


def test_the_widest_rows_that_a_program_holds():
    compare(
        CASES["two-streams"]._replace(rows=(3, 2), channels=table.NORM_CHANNELS, slots=1),
        torch.float32,
    )


@pytest.mark.parametrize("counts", [(0, 1), (31, 70), (1024,)], ids=str)
def test_column_sums_of_any_number_of_rows(counts):
    partial = torch.randn(sum(counts), 40, device=DEVICE)
    outs = [partial.new_empty(40) for _ in counts]
    column_sums.sum_columns(partial, outs, counts)
    for out, rows in zip(outs, partial.split(counts), strict=True):
        assert_close_to_exact(out, rows.sum(0), rows.double().sum(0))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("rows", [(1573, 405), (3142, 406)], ids=str)
def test_the_streams_of_mbt_base(rows, dtype):
    case = CASES["dropped"]._replace(rows=rows, channels=768, slots=5)
    compare(case, dtype)


@pytest.mark.gpu
def test_cuda_graph_replays_with_new_data():
    streams, branches, weights, biases = make(CASES["two-streams"])
    x = torch.randn(9, 48, device=DEVICE)

    def call():
        sums, normed = add_layer_norm(
            streams, branches, weights, biases, n_bottlenecks=3, backend="triton"
        )
        totals = residual_add(streams, branches, n_bottlenecks=3, backend="triton")
        return [*sums, *normed, *totals, bias_gelu(x, weights[0], backend="triton")]

    call()  # compile before capturing
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = call()
    for tensor in (*streams, *branches, x):
        tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    assert all(torch.equal(*pair) for pair in zip(outs, call(), strict=True))


@pytest.mark.gpu
def test_other_lengths_compile_nothing():
    kernels = {name: k for m in MODULES for name, k in vars(m).items() if name.endswith("_kernel")}

    def call(case):
        run(case, make(case), "triton")
        streams, branches = ([t.requires_grad_() for t in kind] for kind in make(case)[:2])
        sums = residual_add(streams, branches, n_bottlenecks=case.slots, backend="triton")
        sum(total.sum() for total in sums).backward()
        x = torch.randn(case.rows[0], 48, device=DEVICE, requires_grad=True)
        bias_gelu(x, torch.ones(48, device=DEVICE), backend="triton").sum().backward()

    def compiled():
        caches = {name: kernel.device_caches.values() for name, kernel in kernels.items()}
        return {name: sum(len(cache[0]) for cache in given) for name, given in caches.items()}

    call(CASES["two-streams"])
    before = compiled()
    call(CASES["two-streams"]._replace(rows=(90, 61), batch=3))
    call(CASES["two-streams"]._replace(rows=(128, 16), batch=1, slots=1))
    assert compiled() == before
