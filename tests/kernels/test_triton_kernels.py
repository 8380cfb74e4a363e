"""The Triton kernels by themselves, under the interpreter or on a GPU."""

import ast
from pathlib import Path

import pytest
import torch
from attention_cases import BACKENDS, CASES, DEVICE, compare, make_lengths, make_qkv

from mbt_fast import bottleneck_attention, dispatch, reference
from mbt_fast.testing import assert_close_to_exact
from mbt_fast.testing.inputs import random_call, run_call

if "triton" not in BACKENDS:
    call = dispatch.Call("bottleneck_attention", DEVICE, torch.float32)
    pytest.skip(f"no triton here:\n{dispatch.format_table(call)}", allow_module_level=True)

from mbt_fast.kernels import bottleneck_attention as launchers
from mbt_fast.kernels import launch, table
from mbt_fast.kernels.bottleneck_attention import (
    bottleneck_attention_bwd,
    bottleneck_attention_fwd,
)

CASE = CASES["absent-stream"]
SOURCES = {path.name: path for path in Path(table.__file__).parent.glob("*.py")}
LAUNCHED = [name for name in vars(launchers) if name.endswith("_kernel")]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_all_residues_of_a_tile(dtype):
    for rows in range(129, 129 + 64):
        compare("triton", [torch.randn(1, rows, 3, 2, 64, device=DEVICE).to(dtype)], 4)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [(1573, 405), (3142, 406)], ids=str)
@pytest.mark.parametrize("update", [None, "mean"])
def test_the_streams_of_mbt_base(rows, update):
    shapes = [(2, s, 3, 12, 64) for s in rows]
    compare("triton", [torch.randn(s, device=DEVICE).bfloat16() for s in shapes], 5, update=update)


@pytest.mark.parametrize("head_dim", [16, 24, 40, 64, 72, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_head_dims_that_are_no_power_of_two(head_dim, dtype):
    compare("triton", [torch.randn(1, 37, 3, 2, head_dim, device=DEVICE).to(dtype)], 4)


@pytest.mark.parametrize("streams", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("update", [None, "mean"])
def test_any_number_of_streams_in_any_order_of_length(streams, update):
    rows = [5, 19, 3, 40, 11][:streams]
    compare("triton", [torch.randn(2, s, 3, 1, 16, device=DEVICE) for s in rows], 2, update=update)


@pytest.mark.parametrize("seed", [8, 63, 85])
def test_float32_gradients_where_softmax_is_saturated(seed):
    """Delta from the rounded output left rounding in dq and dk, beyond the rule in these calls."""
    call = random_call(seed, DEVICE)
    runs = [("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64)]
    grads = [run_call(call, backend, dtype)["dqkv"] for backend, dtype in runs]
    for triple in zip(*grads, strict=True):
        assert_close_to_exact(*triple, name="dqkv")


@pytest.mark.parametrize("shape", [(70_000, 2, 3, 1, 16), (1, 71_280, 3, 1, 16)], ids=str)
def test_every_grid_has_one_axis_and_holds_all_rows(shape, monkeypatch):
    """pytorch#146704, xformers#845, flash-attention#1812: 65536 and more in grid y or z."""
    grids = {}

    class Recorder:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            grids[self.name] = grid
            return lambda *args, **kwargs: grids.update({self.name: (*grid, kwargs["BLOCK_M"])})

    for name in LAUNCHED:
        monkeypatch.setattr(launchers, name, Recorder(name))
    qkv = [torch.zeros(shape, device=DEVICE).half()]
    call = (qkv, [None], 1, True, 0.25)
    outs, _, kept = bottleneck_attention_fwd(*call)
    bottleneck_attention_bwd(outs, [None], outs, kept, *call)
    assert set(grids) == set(LAUNCHED)
    for programs, block_m in grids.values():
        assert programs * block_m >= shape[0] * shape[1]


def test_every_launch_is_guarded_by_the_device_of_its_tensors():
    """Liger-Kernel#1303, triton#2441, xformers#681, where there is but one GPU to see it."""
    tree = ast.parse(SOURCES["bottleneck_attention.py"].read_text())
    launches = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Subscript)
        and ast.unparse(node.func.slice) in ("grid", "(programs,)")
    ]
    guards = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and ast.unparse(node.items[0].context_expr) == "device_of(qkv[0])"
    ]
    assert len(launches) == 3  # forward; delta; dkdv and dq in a loop
    assert all(any(launch in ast.walk(guard) for guard in guards) for launch in launches)


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
    compare(
        "triton",
        [torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes],
        4,
        update="mean",
    )


def test_launch_order_is_longest_first_and_undone():
    qkv = [torch.zeros(1, rows, 3, 1, 16) for rows in (5, 9, 7)]
    streams = launch.Streams.of(qkv, [None] * 3)
    assert streams.rows() == (9, 7, 5)
    assert streams.order == [1, 2, 0]
    assert streams.restore(streams.arrange(["a", "b", "c"])) == ["a", "b", "c"]


def test_launchers_take_no_autograd_and_return_contiguous():
    qkv, lengths = make_qkv(CASE), make_lengths(CASE)
    permuted = [stream.transpose(1, 3).contiguous().transpose(1, 3) for stream in qkv]
    call = (permuted, lengths, 4, True, 0.25)
    outs, lses, kept = bottleneck_attention_fwd(*call)
    dqkv = bottleneck_attention_bwd(outs, [None, None], outs, kept, *call)
    assert all(tensor.is_contiguous() for tensor in (*outs, *lses, *kept, *dqkv))
    assert all(grad.isfinite().all() for grad in dqkv)


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


@pytest.mark.gpu
def test_cuda_graph_replays_with_new_data():
    qkv = make_qkv(CASES["two-streams"])
    bottleneck_attention(qkv, 4, update="mean", backend="triton")  # compile before capturing
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = bottleneck_attention(qkv, 4, update="mean", backend="triton")
    for stream in qkv:
        stream.copy_(torch.randn_like(stream))
    graph.replay()
    expected = bottleneck_attention(qkv, 4, update="mean", backend="triton")
    assert all(torch.equal(*pair) for pair in zip(outs, expected, strict=True))


@pytest.mark.gpu
def test_second_call_compiles_nothing():
    from mbt_fast.kernels.bottleneck_attention_fwd import bottleneck_attention_fwd_kernel

    def compiled():
        caches = bottleneck_attention_fwd_kernel.device_caches.values()
        return sum(len(cache[0]) for cache in caches)

    qkv = make_qkv(CASES["two-streams"])
    bottleneck_attention(qkv, 4, backend="triton")
    before = compiled()
    longer = [torch.cat([stream, stream], dim=1) for stream in qkv]
    bottleneck_attention(qkv, 4, backend="triton")
    bottleneck_attention(longer, 4, backend="triton")
    assert compiled() == before


@pytest.mark.gpu
def test_runs_where_the_tensors_are():
    """Liger-Kernel#1303, triton#2441: launched on the current device, tensors on another."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    qkv = [stream.to("cuda:1") for stream in make_qkv(CASE)]
    outs = bottleneck_attention(qkv, 4, backend="triton")
    expected, _ = reference.bottleneck_attention(qkv, 4, [None] * 2, None, 0.25, False)
    torch.testing.assert_close(outs, expected)
