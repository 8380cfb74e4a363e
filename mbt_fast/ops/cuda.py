"""Launchers of the CUDA kernels for NVIDIA Hopper, ``csrc/cuda``: all streams of a call at once.

Each takes the outputs to fill, allocated by ``ops.operator``, and then the arguments of the op.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mbt_fast.ops import extension
from mbt_fast.ops.layout import contiguous

DEVICE = "cuda"  # the tests that emulate a GPU say "cpu"
Entries = Sequence[Tensor | None]  # one per stream


def bottleneck_attention_fwd(
    outs: Sequence[Tensor],
    lses: Sequence[Tensor],
    stats: Sequence[Tensor],
    slots: Sequence[Tensor],
    qkv: Sequence[Tensor],
    lengths: Entries,
    n_bottlenecks: int,
    update_mean: bool,
    scale: float,
    return_lse: bool,
) -> None:
    """Launch the forward; outputs are those of ``ops.cpu``.

    Raises:
        ValueError: The kernels cannot run the call; nothing was launched.
    """
    if not any(out.numel() for out in outs):
        return
    module, dtype, streams = extension.cuda_module(), qkv[0].dtype, []
    qkv, (lengths,) = [_copy_engine_readable(x) for x in qkv], contiguous(lengths)
    own_slots = list(slots[0]) if slots[0].numel() else [None] * len(qkv)
    with _device_of(qkv[0]):
        for x, length, out, lse, stat, own in zip(
            qkv, lengths, outs, lses, stats, own_slots, strict=True
        ):
            streams.append(
                module.StreamForward(
                    _address("qkv", x, dtype), x.stride()[:4], x.shape[1],
                    _address("lengths", length, torch.int32), out.data_ptr(), lse.data_ptr(),
                    stat.data_ptr(), _address("slots", own, dtype),
                )
            )  # fmt: skip
        module.bottleneck_attention_fwd(_call(qkv[0], n_bottlenecks, scale), streams)


def bottleneck_attention_bwd(
    dqkv: Sequence[Tensor],
    douts: Sequence[Tensor],
    dlses: Entries,
    outs: Sequence[Tensor],
    stats: Sequence[Tensor],
    slots: Sequence[Tensor],
    qkv: Sequence[Tensor],
    lengths: Entries,
    n_bottlenecks: int,
    update_mean: bool,
    scale: float,
) -> None:
    """Launch the backward.

    ``torch.use_deterministic_algorithms(True)`` selects the variant that repeats bit by bit; it
    needs seven products where the other needs five.

    Raises:
        ValueError: The kernels cannot run the call; nothing was launched.
    """
    if not any(grad.numel() for grad in dqkv):
        return
    batch, _, _, heads, head_dim = qkv[0].shape
    module, dtype, streams = extension.cuda_module(), qkv[0].dtype, []
    qkv, douts = ([_copy_engine_readable(x) for x in entries] for entries in (qkv, douts))
    dlses, lengths, outs, stats, slots = contiguous(dlses, lengths, outs, stats, slots)
    update_mean = update_mean and n_bottlenecks > 0
    own_slots = list(slots[0]) if update_mean else [None] * len(qkv)
    dslots = qkv[0].new_empty(batch, n_bottlenecks, heads, head_dim) if update_mean else None
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    with _device_of(qkv[0]):
        call = _call(qkv[0], n_bottlenecks, scale)
        workspaces = [
            x.new_empty(
                module.backward_workspace(call, x.shape[1], is_deterministic), dtype=torch.float32
            )
            for x in qkv
        ]
        for x, length, out, own, stat, dout, dlse, workspace, grad in zip(
            qkv, lengths, outs, own_slots, stats, douts, dlses, workspaces, dqkv, strict=True
        ):
            streams.append(
                module.StreamBackward(
                    _address("qkv", x, dtype), x.stride()[:4], x.shape[1],
                    _address("lengths", length, torch.int32), _address("outs", out, dtype),
                    _address("slots", own, dtype), _address("stats", stat, torch.float32),
                    _address("douts", dout, dtype), dout.stride()[:3],
                    _address("dlses", dlse, torch.float32), workspace.data_ptr(), grad.data_ptr(),
                )
            )  # fmt: skip
        module.bottleneck_attention_bwd(
            call, streams, _address("dslots", dslots, dtype), is_deterministic
        )


def _call(stream: Tensor, n_bottlenecks: int, scale: float) -> object:
    batch, _, _, heads, head_dim = stream.shape
    shape = (batch, heads, n_bottlenecks, head_dim)
    dtype = str(stream.dtype).removeprefix("torch.")
    return extension.cuda_module().Call(dtype, shape, scale, _queue_of(stream))


def _address(name: str, tensor: Tensor | None, dtype: torch.dtype) -> int:
    """The address of a tensor, 0 for none.

    Raises:
        ValueError: ``tensor`` is not on a GPU.
        TypeError: ``tensor`` has another dtype.
    """
    if tensor is None:
        return 0
    if tensor.device.type != DEVICE:
        raise ValueError(f"{name} must be on a GPU for backend 'cuda', got {tensor.device}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {tensor.dtype}")
    return tensor.data_ptr()


def _copy_engine_readable(stream: Tensor) -> Tensor:
    """The stream itself, or a copy where the copy engine cannot read it.

    It wants channels side by side, and an address and strides of a multiple of 16 bytes.
    """
    strides = [
        stride * stream.element_size()
        for size, stride in zip(stream.shape[:-1], stream.stride()[:-1], strict=True)
        if size > 1
    ]
    readable = (
        stream.stride(-1) == 1
        and stream.data_ptr() % 16 == 0
        and all(stride > 0 and stride % 16 == 0 for stride in strides)
    )
    return stream if readable else stream.clone(memory_format=torch.contiguous_format)


def _device_of(tensor: Tensor) -> AbstractContextManager:
    """Launch where the tensors are, whichever device is current."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _queue_of(tensor: Tensor) -> int:
    """The CUDA stream that PyTorch uses there."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
