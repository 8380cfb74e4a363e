"""Bugs that other attention kernels have had, on every backend of the table.

Each test is named after a symptom; its docstring names the threads. What torch's own attention does
not promise is asked of the kernels alone.
"""

import contextlib

import pytest
import torch
from attention_cases import CASES, compare, make_lengths, make_qkv, valid_masks
from backends import DEVICE, backends, kernels, widest
from layer_cases import equal

from mbt_fast import bottleneck_attention
from mbt_fast.testing import assert_close_to_exact

CASE = CASES["absent-stream"]
NAN = float("nan")


@backends
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129])
def test_tails_of_all_tile_sizes(backend, rows):
    """flash-attention#443: NaN where the keys are fewer than a tile."""
    compare(backend, [torch.randn(1, rows, 3, 1, 16, device=DEVICE)], min(rows, 3))


@backends
@pytest.mark.parametrize("rows", [(0,), (1,), (0, 0), (0, 1), (1, 40)], ids=str)
@pytest.mark.parametrize("batch", [0, 2])
def test_no_row_or_one_row_hangs_or_crashes_nothing(backend, rows, batch):
    """flash-attention#1537, #2562, #2568: in the backward, or a complaint about the shape."""
    qkv = [torch.randn(batch, count, 3, 2, 16, device=DEVICE) for count in rows]
    compare(backend, qkv, 0)
    compare(backend, qkv, min(rows), update="mean")
    compare(backend, qkv, 0, [torch.zeros(batch, dtype=torch.int32, device=DEVICE) for _ in rows])


@backends
def test_every_element_is_written(backend):
    """flash-attention#2324, fla#892, pytorch#176793: rows that nobody wrote keep garbage."""
    assert DEVICE.type == "cuda" or torch.zeros(3).new_empty(3).isnan().all()  # see conftest.py
    inputs = make_qkv(CASE, requires_grad=True)
    outs, lses = bottleneck_attention(
        inputs, 4, lengths=make_lengths(CASE), update="mean", return_lse=True, backend=backend
    )
    grads = torch.autograd.grad(sum(out.sum() for out in outs), inputs)
    assert not any(tensor.isnan().any() for tensor in (*outs, *lses, *grads))


@backends
def test_an_example_without_keys_does_not_poison_shared_weights(backend):
    """pytorch#41508, #196170: 0 * NaN in one example, and the gradient of all is NaN."""
    projected = torch.randn(2, 7, 16, device=DEVICE)
    weight = (torch.randn(16, 3 * 16, device=DEVICE) / 4).requires_grad_()  # unit scores
    grads = []
    for batch, lengths in ((projected, [6, 0]), (projected[:1], [6])):
        lengths = [torch.tensor(lengths, dtype=torch.int32, device=DEVICE)]
        qkv = (batch @ weight).view(len(batch), 7, 3, 1, 16)
        (out,) = bottleneck_attention([qkv], 1, lengths=lengths, backend=backend)
        grads.append(torch.autograd.grad(out.square().sum(), weight)[0])
    torch.testing.assert_close(*grads)


@backends
@pytest.mark.parametrize("update", [None, "mean"])
def test_nan_in_the_gradient_of_padding_does_not_leak(backend, update):
    """pytorch#101967, seen from behind: multiplied by 0 instead of left out."""
    qkv, lengths = make_qkv(CASE), make_lengths(CASE)
    grads = []
    for poison in (0.0, NAN):
        inputs = [stream.detach().requires_grad_() for stream in qkv]
        outs, lses = bottleneck_attention(
            inputs, 4, lengths=lengths, update=update, return_lse=True, backend=backend
        )
        douts = [torch.ones_like(o) for o in outs]
        dlses = [torch.ones_like(lse) for lse in lses]
        for dout, dlse, valid in zip(douts, dlses, valid_masks(CASE), strict=True):
            dout[~valid] = poison
            dlse.mT[~valid] = poison
        grads.append(torch.autograd.grad([*outs, *lses], inputs, [*douts, *dlses]))
    assert equal(*grads)


@backends
def test_padding_does_not_win_over_very_negative_scores(backend):
    """pytorch#109517: a mask of finite numbers, where every valid score is as low."""
    qkv = torch.randn(1, 9, 3, 1, 16, device=DEVICE)
    qkv[:, :, 0], qkv[:, :, 1] = 1e4, -1e4  # every score is -4e8
    length = torch.tensor([5], dtype=torch.int32, device=DEVICE)
    (out,) = bottleneck_attention([qkv], 1, lengths=[length], backend=backend)
    rows = [0, 1, 2, 3, 4, 8]
    mean = qkv[:, rows, 2].mean(dim=1, keepdim=True)
    torch.testing.assert_close(out[:, rows], mean.expand(-1, 6, -1, -1))


@backends
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 64, 65, 97])
def test_broadcast_streams_of_any_length(backend, rows):
    """pytorch#191937: stride 0, and wrong where the length is 1 modulo 32."""
    one = torch.randn(1, rows, 3, 1, 16, dtype=widest(backend), device=DEVICE)
    for stream in (one.expand(2, -1, -1, 2, -1), one[:, :1].expand(2, rows, -1, 2, -1)):
        results = []
        for layout in (stream, stream.clone(memory_format=torch.contiguous_format)):
            layout = layout.detach().requires_grad_()
            (out,) = bottleneck_attention([layout], 1, backend=backend)
            results.append((out, *torch.autograd.grad(out.square().sum(), layout)))
        torch.testing.assert_close(*results)


@backends
def test_sum_backward_has_stride_zero(backend):
    """flash-attention#355, pytorch#141147: wrong gradients for the expanded gradient of sum()."""
    qkv, lengths = make_qkv(CASE), make_lengths(CASE)
    grads = []
    for weights in (None, [torch.ones_like(stream[:, :, 0]) for stream in qkv]):
        inputs = [stream.detach().requires_grad_() for stream in qkv]
        outs = bottleneck_attention(inputs, 4, lengths=lengths, backend=backend)
        if weights is None:
            sum(out.sum() for out in outs).backward()
        else:
            torch.autograd.backward(outs, weights)
        grads.append([stream.grad for stream in inputs])
    assert equal(*grads)


@backends
def test_gradients_of_other_layouts(backend):
    """cudnn-frontend#100: a transposed gradient read as if it were contiguous."""
    qkv = make_qkv(CASE)
    shapes = [stream[:, :, 0].shape for stream in qkv]
    heads_first = [torch.randn(b, h, s, d, device=DEVICE).transpose(1, 2) for b, s, h, d in shapes]
    strided = [torch.randn(*shape[:-1], 2 * shape[-1], device=DEVICE)[..., ::2] for shape in shapes]
    lses = [torch.randn(b, s, h, device=DEVICE).mT for b, s, h, _ in shapes]
    grads = []
    for dlses in (lses, [lse.contiguous() for lse in lses]):
        inputs = [stream.detach().requires_grad_() for stream in qkv]
        _, found = bottleneck_attention(inputs, 4, return_lse=True, backend=backend)
        grads.append(torch.autograd.grad(found, inputs, dlses))
    assert equal(*grads)
    compare(backend, qkv, 4, make_lengths(CASE), "mean", heads_first)
    compare(backend, qkv, 4, make_lengths(CASE), "mean", strided)


@backends
def test_one_of_two_outputs_without_gradient(backend):
    qkv = make_qkv(CASE)
    unused = torch.zeros_like(qkv[1][:, :, 0])
    compare(backend, qkv, 4, None, "mean", [torch.randn_like(qkv[0][:, :, 0]), unused])
    inputs = [stream.detach().requires_grad_() for stream in qkv]
    first, second = bottleneck_attention(inputs, 4, update="mean", backend=backend)
    grads = torch.autograd.grad(first.sum(), inputs, retain_graph=True)
    zeros = torch.autograd.grad([first.sum(), second], inputs, [None, torch.zeros_like(second)])
    assert equal(grads, zeros)


@backends
def test_offsets_beyond_32_bits(backend):
    """fla#1080, vllm#50427: offsets that wrap, though few elements are touched."""
    rows, row_stride = 3, 2**31 // 2 + 1
    if DEVICE.type == "cuda" and torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free GPU memory")
    storage = torch.empty(rows * row_stride, dtype=torch.float16, device=DEVICE)  # never touched
    assert (rows - 1) * row_stride > 2**31
    far = storage.as_strided((1, rows, 3, 1, 16), (0, row_stride, 16, 16, 1))
    far_dout = storage[48:].as_strided((1, rows, 1, 16), (0, row_stride, 16, 1))
    near = torch.randn(1, rows, 3, 1, 16, device=DEVICE).half()
    near_dout = torch.randn(1, rows, 1, 16, device=DEVICE).half()
    far.copy_(near)
    far_dout.copy_(near_dout)
    results = []
    for stream, dout in ((near, near_dout), (far, far_dout)):
        stream = stream.detach().requires_grad_()
        (out,) = bottleneck_attention([stream], 1, backend=backend)
        results.append((out, *torch.autograd.grad(out, stream, dout)))
    assert equal(*results)


@backends
def test_more_heads_than_a_grid_axis_holds(backend):
    """pytorch#142228, #146704, xformers#845: 65536 and more in grid y or z."""
    if backend == "triton" and DEVICE.type == "cpu":
        pytest.skip("70 000 interpreted programs; their grid has a test in test_triton.py")
    qkv = torch.randn(70_000, 2, 3, 1, 16, device=DEVICE).half()
    (out,) = bottleneck_attention([qkv], 1, backend=backend)
    (expected,) = bottleneck_attention([qkv[-3:]], 1, backend=backend)
    assert torch.equal(out[-3:], expected)


@backends
@pytest.mark.parametrize("width", [16, 17], ids=["odd base", "odd base and strides"])
def test_misaligned_inputs(backend, width):
    """xformers#813, pytorch#114173: a base or a stride that is not a multiple of 16 bytes."""
    flat = torch.randn(2 * 9 * 3 * 2 * width + 1, device=DEVICE).half()
    shifted = flat[1:].view(2, 9, 3, 2, width)[..., :16]
    assert shifted.data_ptr() % 16
    compare(backend, [shifted], 2)


@backends
@pytest.mark.parametrize("factor", [1e2, 1e3])
def test_huge_logits(backend, factor):
    """Scores of about 1e4 to 1e6: an online softmax that forgets its maximum overflows.

    Gradients need only be finite: where softmax is saturated they are exactly zero, and every fused
    backward, torch's too, is left with the rounding of dout v - dout out.
    """
    qkv = [factor * stream for stream in make_qkv(CASE, requires_grad=True)]
    call = {"lengths": make_lengths(CASE)}
    outs = bottleneck_attention(qkv, 4, backend=backend, **call)
    eager = bottleneck_attention(qkv, 4, backend="reference", **call)
    exact = bottleneck_attention([s.double() for s in qkv], 4, backend="reference", **call)
    for triple in zip(outs, eager, exact, strict=True):
        assert_close_to_exact(*triple)
    grads = torch.autograd.grad(sum(out.sum() for out in outs), qkv)
    assert all(grad.isfinite().all() for grad in grads)


@kernels
def test_negative_lse_of_huge_scores_in_the_backward(backend):
    """Keys beyond the last must not count though exp(0 - lse) is infinite there."""
    qkv = torch.randn(1, 5, 3, 1, 16, device=DEVICE)
    qkv[:, :, 0] = 100.0
    qkv[:, :, 1] = -100.0  # every score is -4e4
    compare(backend, [qkv], 1)


@kernels
@pytest.mark.parametrize("head_dim", [16, 63, 128])
def test_softmax_over_one_key_has_no_gradient(backend, head_dim):
    """Query and key get exactly nothing, unless the log-sum-exp is used, of which they get all."""
    qkv = 10 * torch.randn(4, 1, 3, 3, head_dim, device=DEVICE)
    qkv = qkv.requires_grad_()
    (out,), (lse,) = bottleneck_attention([qkv], 1, return_lse=True, backend=backend)
    (grad,) = torch.autograd.grad(out, qkv, torch.randn_like(out), retain_graph=True)
    assert grad[:, :, :2].eq(0).all()
    assert grad[:, :, 2].ne(0).any()
    (grad,) = torch.autograd.grad(lse.sum(), qkv)
    query, key = (part.detach() for part in qkv.unbind(2)[:2])
    torch.testing.assert_close(grad[:, :, 0], key * head_dim**-0.5)
    torch.testing.assert_close(grad[:, :, 1], query * head_dim**-0.5)


@kernels
def test_bitwise_repeatable(backend):
    """flash-attention#429, #722, pytorch#182551: atomics in the backward."""
    repeats = 30 if DEVICE.type == "cuda" else 3
    qkv, lengths = make_qkv(CASE), make_lengths(CASE)
    first = None
    for _ in range(repeats):
        inputs = [stream.detach().requires_grad_() for stream in qkv]
        outs = bottleneck_attention(inputs, 4, lengths=lengths, update="mean", backend=backend)
        found = [*outs, *torch.autograd.grad(sum(o.square().sum() for o in outs), inputs)]
        first = first or found
        assert equal(found, first)


@kernels
def test_an_example_is_the_same_in_any_batch(backend):
    qkv, lengths = make_qkv(CASE), make_lengths(CASE)
    whole = bottleneck_attention(qkv, 4, lengths=lengths, update="mean", backend=backend)
    for example in range(CASE.batch):
        one = slice(example, example + 1)
        alone = bottleneck_attention(
            [stream[one] for stream in qkv],
            4,
            lengths=[length[one].clone() for length in lengths],
            update="mean",
            backend=backend,
        )
        assert equal(alone, [out[one] for out in whole])


@backends
def test_saved_tensors_may_come_back_elsewhere(backend):
    """pytorch#134995: save_on_cpu and its like return other memory, of another alignment."""
    qkv = make_qkv(CASE, requires_grad=True)

    def pack(tensor):
        return torch.cat([tensor.flatten()[:1], tensor.flatten()]), tensor.shape

    def unpack(packed):
        return packed[0][1:].view(packed[1]) if packed[1].numel() else packed[0].view(packed[1])

    grads = []
    for hooks in (contextlib.nullcontext(), torch.autograd.graph.saved_tensors_hooks(pack, unpack)):
        with hooks:
            outs = bottleneck_attention(qkv, 4, update="mean", backend=backend)
        grads.append(torch.autograd.grad(sum(out.square().sum() for out in outs), qkv))
    assert equal(*grads)


@backends
def test_lengths_of_any_stride(backend):
    qkv, lengths = make_qkv(CASE), make_lengths(CASE)
    strided = [torch.stack([length, length], dim=1)[:, 0] for length in lengths]
    expected = bottleneck_attention(qkv, 4, lengths=lengths, backend=backend)
    actual = bottleneck_attention(qkv, 4, lengths=strided, backend=backend)
    assert equal(actual, expected)


@pytest.mark.gpu
@backends
def test_a_second_stream_of_the_device(backend):
    """flashinfer#3283, TensorRT-LLM#15265: a workspace that is kept, and shared by two streams."""
    first, second = make_qkv(CASE), make_qkv(CASE)
    expected = bottleneck_attention(second, 4, update="mean", backend=backend)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    for _ in range(10):
        bottleneck_attention(first, 4, update="mean", backend=backend)
        with torch.cuda.stream(side):
            found = bottleneck_attention(second, 4, update="mean", backend=backend)
    torch.cuda.synchronize()
    assert equal(found, expected)
