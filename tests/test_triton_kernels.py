"""The Triton kernels by themselves, under the interpreter or on a GPU: bugs others have had.

Each test is named after a symptom; the threads are in the comments.
"""

import contextlib

import pytest
import torch
from attention_cases import BACKENDS, CASES, DEVICE, make_lengths, make_qkv

from mbt_fast import bottleneck_attention, dispatch, reference
from mbt_fast.testing import assert_close_to_exact

if "triton" not in BACKENDS:
    call = dispatch.Call("bottleneck_attention", DEVICE, torch.float32)
    pytest.skip(f"no triton here:\n{dispatch.format_table(call)}", allow_module_level=True)

from mbt_fast.kernels import launch, table
from mbt_fast.kernels.bottleneck_attention import (
    bottleneck_attention_bwd,
    bottleneck_attention_fwd,
)

CASE = CASES["absent-stream"]


def compare(qkv, slots, lengths=None, update=None, douts=None):
    """Outputs and gradients of the kernels against the reference, by the tolerance rule."""
    results = {}
    for name, backend, dtype in (
        ("actual", "triton", qkv[0].dtype),
        ("eager", "reference", qkv[0].dtype),
        ("exact", "reference", torch.float64),
    ):
        inputs = [stream.detach().to(dtype).requires_grad_() for stream in qkv]
        outs = bottleneck_attention(inputs, slots, lengths=lengths, update=update, backend=backend)
        grads = [
            torch.ones_like(o) if d is None else d
            for o, d in zip(outs, douts or [None] * len(outs), strict=True)
        ]
        dqkv = torch.autograd.grad(outs, inputs, [g.to(dtype) for g in grads])
        results[name] = [*outs, *dqkv]
    for actual, eager, exact in zip(*results.values(), strict=True):
        assert_close_to_exact(actual, eager, exact)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129])
def test_tails_of_all_tile_sizes(rows):
    """flash-attention#443: NaN where the keys are fewer than a tile."""
    compare([torch.randn(1, rows, 3, 1, 16, device=DEVICE)], min(rows, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_all_residues_of_a_tile(dtype):
    for rows in range(129, 129 + 64):
        compare([torch.randn(1, rows, 3, 2, 64, device=DEVICE).to(dtype)], 4)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [(1573, 405), (3142, 406)], ids=str)
@pytest.mark.parametrize("update", [None, "mean"])
def test_the_streams_of_mbt_base(rows, update):
    shapes = [(2, s, 3, 12, 64) for s in rows]
    compare([torch.randn(s, device=DEVICE).bfloat16() for s in shapes], 5, update=update)


@pytest.mark.parametrize("head_dim", [16, 24, 40, 64, 72, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_head_dims_that_are_no_power_of_two(head_dim, dtype):
    compare([torch.randn(1, 37, 3, 2, head_dim, device=DEVICE).to(dtype)], 4)


@pytest.mark.parametrize("streams", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("update", [None, "mean"])
def test_any_number_of_streams_in_any_order_of_length(streams, update):
    rows = [5, 19, 3, 40, 11][:streams]
    compare([torch.randn(2, s, 3, 1, 16, device=DEVICE) for s in rows], 2, update=update)


def test_sum_backward_has_stride_zero():
    """flash-attention#355, pytorch#141147: wrong gradients for the expanded gradient of sum()."""
    qkv = make_qkv(CASE, requires_grad=True)
    outs = bottleneck_attention(qkv, 4, lengths=make_lengths(CASE), backend="triton")
    sum(out.sum() for out in outs).backward()
    compare(qkv, 4, make_lengths(CASE))


def test_gradients_of_other_layouts():
    """cudnn-frontend#100: a transposed gradient read as if it were contiguous."""
    qkv = make_qkv(CASE)
    shapes = [stream[:, :, 0].shape for stream in qkv]
    heads_first = [torch.randn(b, h, s, d, device=DEVICE).transpose(1, 2) for b, s, h, d in shapes]
    strided = [torch.randn(*shape[:-1], 2 * shape[-1], device=DEVICE)[..., ::2] for shape in shapes]
    lses = [torch.randn(b, s, h, device=DEVICE).mT for b, s, h, _ in shapes]
    grads = []
    for dlses in (lses, [lse.contiguous() for lse in lses]):
        inputs = [stream.detach().requires_grad_() for stream in qkv]
        _, found = bottleneck_attention(inputs, 4, return_lse=True, backend="triton")
        grads.append(torch.autograd.grad(found, inputs, dlses))
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))
    compare(qkv, 4, make_lengths(CASE), "mean", heads_first)
    compare(qkv, 4, make_lengths(CASE), "mean", strided)


def test_one_of_two_outputs_without_gradient():
    qkv = make_qkv(CASE, requires_grad=True)
    first, _ = bottleneck_attention(qkv, 4, update="mean", backend="triton")
    grads = torch.autograd.grad(first.square().sum(), qkv)
    again = [stream.detach().requires_grad_() for stream in qkv]
    expected, _ = bottleneck_attention(again, 4, update="mean", backend="reference")
    torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), again))


def test_offsets_beyond_32_bits():
    """fla#1080, vllm#50427: offsets that wrap, though few elements are touched."""
    rows, row_stride = 3, 2**31 // 2 + 1
    if DEVICE.type == "cuda" and torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free GPU memory")
    storage = torch.empty(rows * row_stride, dtype=torch.float16, device=DEVICE)  # never touched
    far = storage.as_strided((1, rows, 3, 1, 16), (0, row_stride, 16, 16, 1))
    near = torch.randn(1, rows, 3, 1, 16, device=DEVICE).half()
    far.copy_(near)
    assert (rows - 1) * row_stride > 2**31
    (expected,) = bottleneck_attention([near], 1, backend="triton")
    (actual,) = bottleneck_attention([far], 1, backend="triton")
    assert torch.equal(actual, expected)


@pytest.mark.gpu
def test_more_heads_than_a_grid_axis_holds():
    """pytorch#146704, xformers#845: 65536 and more in grid y or z. Here all is on x."""
    qkv = torch.randn(70_000, 2, 3, 1, 16, device=DEVICE).half()
    (out,) = bottleneck_attention([qkv], 1, backend="triton")
    (expected,) = bottleneck_attention([qkv[-3:]], 1, backend="triton")
    assert torch.equal(out[-3:], expected)


def test_misaligned_inputs():
    """xformers#813: a base that is not a multiple of 16 bytes."""
    flat = torch.randn(2 * 9 * 3 * 2 * 16 + 1, device=DEVICE).half()
    shifted = flat[1:].view(2, 9, 3, 2, 16)
    assert shifted.data_ptr() % 16
    compare([shifted], 2)


@pytest.mark.parametrize("factor", [1e2, 1e3])
def test_huge_logits(factor):
    """Scores of about 1e4 to 1e6: an online softmax that forgets its maximum overflows.

    Gradients need only be finite: where softmax is saturated they are exactly zero, and every fused
    backward, torch's too, is left with the rounding of dout v - dout out.
    """
    qkv = [factor * stream for stream in make_qkv(CASE, requires_grad=True)]
    call = {"lengths": make_lengths(CASE)}
    outs = bottleneck_attention(qkv, 4, backend="triton", **call)
    eager = bottleneck_attention(qkv, 4, backend="reference", **call)
    exact = bottleneck_attention([s.double() for s in qkv], 4, backend="reference", **call)
    for triple in zip(outs, eager, exact, strict=True):
        assert_close_to_exact(*triple)
    grads = torch.autograd.grad(sum(out.sum() for out in outs), qkv)
    assert all(grad.isfinite().all() for grad in grads)


def test_negative_lse_of_huge_scores_in_the_backward():
    """Keys beyond the last must not count though exp(0 - lse) is infinite there."""
    qkv = torch.randn(1, 5, 3, 1, 16, device=DEVICE)
    qkv[:, :, 0] = 100.0
    qkv[:, :, 1] = -100.0  # every score is -4e4
    compare([qkv], 1)


@pytest.mark.parametrize("head_dim", [16, 63, 128])
def test_softmax_over_one_key_has_no_gradient(head_dim):
    """Query and key get exactly nothing, unless the log-sum-exp is used, of which they get all."""
    qkv = 10 * torch.randn(4, 1, 3, 3, head_dim, device=DEVICE)
    qkv = qkv.requires_grad_()
    (out,), (lse,) = bottleneck_attention([qkv], 1, return_lse=True, backend="triton")
    (grad,) = torch.autograd.grad(out, qkv, torch.randn_like(out), retain_graph=True)
    assert grad[:, :, :2].eq(0).all()
    assert grad[:, :, 2].ne(0).any()
    (grad,) = torch.autograd.grad(lse.sum(), qkv)
    query, key = (part.detach() for part in qkv.unbind(2)[:2])
    torch.testing.assert_close(grad[:, :, 0], key * head_dim**-0.5)
    torch.testing.assert_close(grad[:, :, 1], query * head_dim**-0.5)


def test_bitwise_repeatable():
    """flash-attention#429: atomics in the backward."""
    repeats = 30 if DEVICE.type == "cuda" else 3
    qkv, lengths = make_qkv(CASE), make_lengths(CASE)
    first = None
    for _ in range(repeats):
        inputs = [stream.detach().requires_grad_() for stream in qkv]
        outs = bottleneck_attention(inputs, 4, lengths=lengths, update="mean", backend="triton")
        found = [*outs, *torch.autograd.grad(sum(o.square().sum() for o in outs), inputs)]
        first = first or found
        assert all(torch.equal(*pair) for pair in zip(found, first, strict=True))


def test_an_example_is_the_same_in_any_batch():
    qkv, lengths = make_qkv(CASE), make_lengths(CASE)
    whole = bottleneck_attention(qkv, 4, lengths=lengths, update="mean", backend="triton")
    for example in range(CASE.batch):
        one = slice(example, example + 1)
        alone = bottleneck_attention(
            [stream[one] for stream in qkv],
            4,
            lengths=[length[one].clone() for length in lengths],
            update="mean",
            backend="triton",
        )
        assert all(torch.equal(a, w[one]) for a, w in zip(alone, whole, strict=True))


def test_saved_tensors_may_come_back_elsewhere():
    """pytorch#134995: save_on_cpu and its like return other memory, of another alignment."""
    qkv = make_qkv(CASE, requires_grad=True)

    def pack(tensor):
        return torch.cat([tensor.flatten()[:1], tensor.flatten()]), tensor.shape

    def unpack(packed):
        return packed[0][1:].view(packed[1]) if packed[1].numel() else packed[0].view(packed[1])

    grads = []
    for hooks in (contextlib.nullcontext(), torch.autograd.graph.saved_tensors_hooks(pack, unpack)):
        with hooks:
            outs = bottleneck_attention(qkv, 4, update="mean", backend="triton")
        grads.append(torch.autograd.grad(sum(out.square().sum() for out in outs), qkv))
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_lengths_of_any_stride():
    qkv, lengths = make_qkv(CASE), make_lengths(CASE)
    strided = [torch.stack([length, length], dim=1)[:, 0] for length in lengths]
    expected = bottleneck_attention(qkv, 4, lengths=lengths, backend="triton")
    actual = bottleneck_attention(qkv, 4, lengths=strided, backend="triton")
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize("arch", table.ARCHS)
@pytest.mark.parametrize("head_dim", table.HEAD_DIMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_shipped_configuration_gives_the_same(arch, head_dim, dtype, monkeypatch):
    """Triton#10573: tile shapes that were miscompiled; here at least their logic is the same."""
    if DEVICE.type == "cuda" and arch > table.arch_of(torch.empty(0, device=DEVICE)):
        pytest.skip(f"tiles of sm_{arch} may not fit on this device")
    monkeypatch.setattr(table, "arch_of", lambda tensor: arch)
    shapes = [(1, 135, 3, 1, head_dim), (1, 21, 3, 1, head_dim)]
    compare([torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes], 4, update="mean")


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
