"""The Triton kernels by themselves, under the interpreter or on a GPU."""

import ast
import importlib
import re
from pathlib import Path

import attention_cases
import layer_cases
import pytest
import torch
from attention_cases import compare, make_qkv
from backends import BACKENDS, DEVICE, DTYPES
from layer_cases import NORM, RESIDUAL, assert_within_tolerance, results

from mbt_fast.functional import add_layer_norm, bias_gelu, bottleneck_attention, residual_add
from mbt_fast.ops import dispatch
from mbt_fast.testing import assert_close_to_exact
from mbt_fast.testing.inputs import random_call, run_call

if "triton" not in BACKENDS:
    why = dispatch.explain([torch.zeros(1, 1, 3, 1, 16, device=DEVICE)])
    pytest.skip(f"no triton here:\n{why}", allow_module_level=True)

import triton
import triton.language as tl

from mbt_fast.kernels import column_sums, launch, table, tiles

CASE = attention_cases.CASES["absent-stream"]
TWO = layer_cases.CASES["two-streams"]
SOURCES = {path.name: path for path in Path(table.__file__).parent.glob("*.py")}
LAUNCHED = {  # kernels that each file starts
    "bottleneck_attention_fwd": 2,  # and the mean of the slots
    "bottleneck_attention_bwd": 2,  # delta; dkdv and dq in a loop
    "add_layer_norm_fwd": 1,
    "add_layer_norm_bwd": 2,  # and column sums
    "bias_gelu_fwd": 1,
    "bias_gelu_bwd": 2,
    "residual_add_fwd": 1,
    "residual_add_bwd": 1,
}
MODULES = {
    name: importlib.import_module(f"mbt_fast.kernels.{name}") for name in (*LAUNCHED, "column_sums")
}
KERNELS = {
    name: (module, kernel)
    for module in MODULES.values()
    for name, kernel in vars(module).items()
    if name.endswith("_kernel")
}


def run(operator, *arguments):
    """What an operator on Triton returns, in one list."""
    return getattr(torch.ops.mbt_fast, operator).triton(*arguments)


def streams_of(shapes, dtype=torch.float32):
    return [torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_all_residues_of_a_tile(dtype):
    for rows in range(129, 129 + 64):
        compare("triton", streams_of([(1, rows, 3, 2, 64)], dtype), 4)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [(1573, 405), (3142, 406)], ids=str)
@pytest.mark.parametrize("update", [None, "mean"])
def test_attention_of_mbt_base(rows, update):
    shapes = [(2, s, 3, 12, 64) for s in rows]
    compare("triton", streams_of(shapes, torch.bfloat16), 5, update=update)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [(1573, 405), (3142, 406)], ids=str)
def test_layer_norm_of_mbt_base(rows, dtype):
    case = layer_cases.CASES["dropped"]._replace(rows=rows, channels=768, slots=5)
    assert_within_tolerance(NORM, case, NORM.make(case, dtype), "triton")


@pytest.mark.parametrize("head_dim", [16, 24, 40, 64, 72, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_head_dims_that_are_no_power_of_two(head_dim, dtype):
    compare("triton", streams_of([(1, 37, 3, 2, head_dim)], dtype), 4)


@pytest.mark.parametrize("streams", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("update", [None, "mean"])
def test_any_number_of_streams_in_any_order_of_length(streams, update):
    rows = [5, 19, 3, 40, 11][:streams]
    compare("triton", streams_of([(2, s, 3, 1, 16) for s in rows]), 2, update=update)


@pytest.mark.parametrize("scale", [-0.3, 0.0], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_scales_that_are_not_positive(scale, dtype):
    """The largest score is then not that of the largest product."""
    lengths = [torch.tensor([70, 3], device=DEVICE, dtype=torch.int32), None]
    qkv = streams_of([(2, 90, 3, 2, 16), (2, 9, 3, 2, 16)], dtype)
    compare("triton", qkv, 4, lengths=lengths, update="mean", scale=scale)


@pytest.mark.parametrize("own", [0, 63, 64, 65, 128, 190])
def test_walks_of_whole_tiles_and_of_slots_that_fill_several(own):
    lengths = [torch.tensor([own, own // 2], device=DEVICE, dtype=torch.int32)]
    compare("triton", streams_of([(2, 270, 3, 1, 16)], torch.float16), 80, lengths=lengths)


@pytest.mark.parametrize("seed", [8, 63, 85])
def test_float32_gradients_where_softmax_is_saturated(seed):
    """Delta from the rounded output left rounding in dq and dk, beyond the rule in these calls."""
    call = random_call(seed, DEVICE)
    runs = [("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64)]
    grads = [run_call(call, backend, dtype)["dqkv"] for backend, dtype in runs]
    for triple in zip(*grads, strict=True):
        assert_close_to_exact(*triple, name="dqkv")


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

    for name, (module, kernel) in KERNELS.items():
        monkeypatch.setattr(module, name, Recorder(name, kernel))
    return seen


def test_all_streams_take_one_launch_forward_and_two_backward(launches):
    case = layer_cases.CASES["three-streams"]
    for op in (NORM, RESIDUAL):
        results(op, case, op.make(case), "triton")
    x = torch.zeros(3, 8, device=DEVICE, requires_grad=True)
    bias_gelu(x, backend="triton").sum().backward()
    assert [name for name, *_ in launches] == [
        "add_layer_norm_fwd_kernel", "add_layer_norm_bwd_kernel", "column_sums_kernel",
        "residual_add_fwd_kernel", "residual_add_bwd_kernel",
        "bias_gelu_fwd_kernel", "bias_gelu_bwd_kernel",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(70_000, 2, 3, 1, 16), (1, 71_280, 3, 1, 16)], ids=str)
def test_every_grid_of_attention_has_one_axis_and_holds_all_rows(shape, launches):
    """pytorch#146704, xformers#845, flash-attention#1812: 65536 and more in grid y or z."""
    call = ([torch.zeros(shape, device=DEVICE).half()], [None], 1, True, 0.25)
    out, _, stats, slots = run("bottleneck_attention_fwd", *call, False)
    run("bottleneck_attention_bwd", [out], [None], [out], [stats], [slots], *call)
    assert {name for name, *_ in launches} == {n for n in KERNELS if "attention" in n}
    for name, (programs,), given in launches:
        if name != "bottleneck_attention_slots_kernel":
            assert programs * given["BLOCK_M"] >= shape[0] * shape[1]
        else:  # a program takes elements of one example's slots
            assert programs == shape[0]


@pytest.mark.parametrize("shape", [(70_000, 2, 16), (1, 71_280, 16), (2, 40_000, 1100)], ids=str)
def test_every_grid_of_a_layer_has_one_axis_and_holds_all_rows(shape, launches):
    stream = torch.zeros(1, 1, 1, device=DEVICE).half().expand(shape)
    parameter = [torch.zeros(shape[-1], device=DEVICE).half()]
    stats, none = [torch.zeros(2, *shape[:2])], [None]
    run("add_layer_norm_fwd", [stream], none, parameter, parameter, none, none, 1, 1e-6)
    run("add_layer_norm_bwd", none, [stream], [stream], stats, parameter, none, none, 1)
    run("residual_add_fwd", [stream], [stream], none, none, 1)
    run("residual_add_bwd", [stream], none, none, 1)
    rows = shape[0] * shape[1]
    for _, (programs,), given in (*launches[:2], *launches[3:]):
        tiles = programs * given.get("step", 1)  # a program of the backward takes several
        assert tiles * given["BLOCK_R"] >= rows
    assert max(launches[2][2]["counts"]) <= max(launch.numbers([column_sums.MOST_CHUNKS]))


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_launch_is_guarded_by_the_device_of_its_tensors(name):
    """Liger-Kernel#1303, triton#2441, xformers#681, where there is but one GPU to see it."""
    nodes = [*ast.walk(ast.parse(SOURCES[f"{name}.py"].read_text()))]
    starts = [
        node for node in nodes
        if isinstance(node, ast.Call)
        and (isinstance(node.func, ast.Subscript) or ast.unparse(node.func) == "sum_columns")
    ]  # fmt: skip
    guards = [
        node for node in nodes
        if isinstance(node, ast.With) and "device_of(" in ast.unparse(node.items[0].context_expr)
    ]  # fmt: skip
    assert len(starts) == LAUNCHED[name]
    assert all(any(start in ast.walk(guard) for guard in guards) for start in starts)


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_tunes_at_run_time(name):
    """triton#4217, #5339, #6547: trial runs of a tuner are added to the outputs."""
    assert "autotune" not in SOURCES[name].read_text()


@pytest.mark.parametrize("arch", table.ARCHS)
@pytest.mark.parametrize("head_dim", table.HEAD_DIMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_shipped_configuration_gives_the_same(arch, head_dim, dtype, monkeypatch):
    """Triton#10573: tile shapes that were miscompiled; here at least their logic is the same."""
    if DEVICE.type == "cuda" and arch > table.arch_of(torch.empty(0, device=DEVICE)):
        pytest.skip(f"tiles of sm_{arch} may not fit on this device")
    monkeypatch.setattr(table, "arch_of", lambda tensor: arch)
    shapes = [(1, 135, 3, 1, head_dim), (1, 21, 3, 1, head_dim)]
    compare("triton", streams_of(shapes, dtype), 4, update="mean")


@pytest.mark.parametrize("name", SOURCES)
def test_a_global_constant_stands_right_of_a_tensor(name):
    """From Triton 3.8 on its interpreter refuses ``CONSTANT * tensor``: "cannot convert"."""
    constants: set[str] = set()
    for path in SOURCES.values():
        constants.update(re.findall(r"^(\w+) = tl.constexpr", path.read_text(), re.MULTILINE))
    for node in ast.walk(ast.parse(SOURCES[name].read_text())):
        if isinstance(node, ast.BinOp):
            left = node.left.operand if isinstance(node.left, ast.UnaryOp) else node.left
            assert not (isinstance(left, ast.Name) and left.id in constants), ast.unparse(node)


@triton.jit
def joined_kernel(out_ptr, n, condition):
    number = tl.arange(0, 8)
    tl.store(out_ptr + number, 1.0, mask=tiles.only_if(number < n, condition > 0))


@pytest.mark.parametrize(("condition", "written"), [(1, 5), (0, 0)])
def test_a_mask_may_depend_on_a_scalar(condition, written):
    """From Triton 3.8 on its interpreter refused it: "mask has unsupported dtype"."""
    out = torch.zeros(8, device=DEVICE)
    joined_kernel[(1,)](out, 5, condition)
    assert out.tolist() == [1.0] * written + [0.0] * (8 - written)


def test_every_launch_asks_for_fused_products_and_sums(launches):
    """Triton fuses by default up to 3.9, and no longer from 3.10 on."""
    case = layer_cases.CASES["three-streams"]
    for op in (NORM, RESIDUAL):
        results(op, case, op.make(case), "triton")
    x = torch.zeros(3, 8, device=DEVICE, requires_grad=True)
    bias_gelu(x, x[0].detach().requires_grad_(), backend="triton").sum().backward()
    qkv = [stream.requires_grad_() for stream in make_qkv(CASE)]
    outs = bottleneck_attention(qkv, 4, update="mean", backend="triton")
    sum(out.sum() for out in outs).backward()
    assert {name for name, *_ in launches} == {*KERNELS}
    assert all(given["enable_fp_fusion"] is True for *_, given in launches)


def test_launch_order_is_longest_first():
    qkv = [torch.zeros(1, rows, 3, 1, 16) for rows in (5, 9, 7)]
    streams = launch.Streams.of(qkv, [None] * 3)
    assert streams.rows() == (9, 7, 5)
    assert streams.arrange(["a", "b", "c"]) == ["b", "c", "a"]


def test_more_rows_than_int32_numbers_are_refused_before_the_launch():
    stream = torch.zeros(16, device=DEVICE).as_strided((1, 2**31, 3, 1, 16), (0, 0, 0, 0, 1))
    with pytest.raises(ValueError, match="at most 2147483520 rows in a stream, got 2147483648"):
        launch.Streams.of([stream], [None])
    assert launch.Streams.of([stream[:, : launch.MAX_ROWS]], [None]).rows() == (launch.MAX_ROWS,)


def test_operators_return_contiguous():
    permuted = [s.transpose(1, 3).contiguous().transpose(1, 3) for s in make_qkv(CASE)]
    call = (permuted, attention_cases.make_lengths(CASE), 4, True, 0.25)
    results = run("bottleneck_attention_fwd", *call, False)
    outs, stats, slots = results[:2], results[4:6], results[6:]
    dqkv = run("bottleneck_attention_bwd", outs, [None, None], outs, stats, slots, *call)
    assert all(tensor.is_contiguous() for tensor in (*results, *dqkv))
    assert all(grad.isfinite().all() for grad in dqkv)


def test_rows_with_a_unit_last_stride_are_read_in_place(launches):
    wide = torch.zeros(2, 5, 40, device=DEVICE)[..., :24]
    weight = [torch.ones(24, device=DEVICE)]
    add_layer_norm([wide], [wide], weight, weight, backend="triton")
    _, _, given = launches[0]
    assert given["stream_ptrs"][0].data_ptr() == wide.data_ptr()
    assert given["branch_ptrs"][0].data_ptr() == wide.data_ptr()
    assert given["strides"] == ((200, 40),)


def test_parameters_of_different_dtypes():
    """A tuple of pointers has one dtype."""
    case = TWO._replace(branches=(False, False))
    streams, branches, *parameters = NORM.make(case, torch.float16)
    mixed = [[first, second.float()] for first, second in parameters]
    assert_within_tolerance(NORM, case, [streams, branches, *mixed], "triton")


def test_more_channels_than_a_program_holds_are_refused_before_the_launch():
    assert table.NORM_CHANNELS == 8192
    rows = torch.zeros(1, 2, table.NORM_CHANNELS + 1, device=DEVICE)
    with pytest.raises(dispatch.BackendError, match="8193 channels, and it takes at most 8192"):
        add_layer_norm([rows], None, [rows[0, 0]], [rows[0, 0]], backend="triton")
    with pytest.raises(dispatch.BackendError, match="8193 channels, and it takes at most 8192"):
        residual_add([rows], [rows], backend="triton")
    assert bias_gelu(rows, backend="triton").eq(0).all()


def test_the_widest_rows_that_a_program_holds():
    case = TWO._replace(rows=(3, 2), channels=table.NORM_CHANNELS, slots=1)
    assert_within_tolerance(NORM, case, NORM.make(case), "triton")


@pytest.mark.parametrize("counts", [(0, 1), (31, 70), (1024,)], ids=str)
def test_column_sums_of_any_number_of_rows(counts):
    partial = torch.randn(sum(counts), 40, device=DEVICE)
    outs = [partial.new_empty(40) for _ in counts]
    column_sums.sum_columns(partial, outs, counts)
    for out, rows in zip(outs, partial.split(counts), strict=True):
        assert_close_to_exact(out, rows.sum(0), rows.double().sum(0))


@pytest.mark.gpu
def test_a_stream_of_71280_rows():
    """flash-attention#1812: a valid length, an invalid launch."""
    qkv = torch.randn(1, 71_280, 3, 1, 16, device=DEVICE).half()
    (out,) = bottleneck_attention([qkv], 4, backend="triton")
    query, key, value = (part[0, :, 0] for part in qkv.unbind(2))
    exact, eager = (
        torch.softmax((query[-3:].to(dtype) @ key.to(dtype).mT) / 4, -1) @ value.to(dtype)
        for dtype in (torch.float64, torch.float32)
    )
    assert_close_to_exact(out[0, -3:, 0], eager.half(), exact)


def tensors_of(case):
    """Packed streams, streams, branches, weights and biases."""
    shapes = [(case.batch, rows, 3, 2, 16) for rows in case.rows]
    return [streams_of(shapes), *layer_cases.make(case)]


def every_op(slots, qkv, streams, branches, weights, biases):
    """Outputs of all ops."""
    on = {"n_bottlenecks": slots, "backend": "triton"}
    sums, normed = add_layer_norm(streams, branches, weights, biases, **on)
    return [
        *bottleneck_attention(qkv, update="mean", **on),
        *sums,
        *normed,
        *residual_add(streams, branches, **on),
        *(bias_gelu(x, bias, backend="triton") for x, bias in zip(streams, biases, strict=True)),
    ]


@pytest.mark.gpu
def test_cuda_graph_replays_with_new_data():
    tensors = tensors_of(TWO)
    every_op(TWO.slots, *tensors)  # compile before capturing
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = every_op(TWO.slots, *tensors)
    for tensor in layer_cases.flat(tensors):
        tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    assert layer_cases.equal(outs, every_op(TWO.slots, *tensors))


@pytest.mark.gpu
def test_other_lengths_compile_nothing():
    def run(case):
        kinds = layer_cases.like(tensors_of(case), torch.Tensor.requires_grad_)
        sum(out.sum() for out in every_op(case.slots, *kinds)).backward()

    def compiled():
        return {
            name: sum(len(cache[0]) for cache in kernel.device_caches.values())
            for name, (_, kernel) in KERNELS.items()
        }

    run(TWO)
    before = compiled()
    run(TWO._replace(rows=(90, 61), batch=3))
    run(TWO._replace(rows=(128, 16), batch=1, slots=1))
    assert compiled() == before


@pytest.mark.gpu
def test_runs_where_the_tensors_are():
    """Liger-Kernel#1303, triton#2441: launched on the current device, tensors on another."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    qkv = [stream.to("cuda:1") for stream in make_qkv(CASE)]
    outs = bottleneck_attention(qkv, 4, backend="triton")
    torch.testing.assert_close(outs, bottleneck_attention(qkv, 4, backend="reference"))
