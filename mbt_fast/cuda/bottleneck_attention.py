"""Launchers of bottleneck attention on NVIDIA Hopper: all streams of a call at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mbt_fast import native
from mbt_fast.cuda.arguments import copy_engine_readable, device_of, pointer, queue_of

Lengths = Sequence[Tensor | None]


def bottleneck_attention_fwd(
    qkv: Sequence[Tensor], lengths: Lengths, n_bottlenecks: int, update_mean: bool, scale: float
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Launch the forward.

    Arguments are those of ``mbt_fast.bottleneck_attention``, checked and complete.

    Returns:
        ``out`` ``[B, S_m, H, D]`` per stream, ``lse`` float32 ``[B, H, S_m]`` per stream, and what
        the backward needs besides: per stream the shift of the softmax and log2 of its sum, float32
        ``[2, B, H, S_m]``, and last the slots before the shared update, ``[M, B, P, H, D]``, empty
        without it.

    Raises:
        ValueError: The kernels cannot run the call; nothing was launched.
    """
    batch, _, _, heads, head_dim = qkv[0].shape
    qkv = [copy_engine_readable(stream) for stream in qkv]
    outs = [s.new_empty(batch, s.shape[1], heads, head_dim) for s in qkv]
    lses = [s.new_empty(batch, heads, s.shape[1], dtype=torch.float32) for s in qkv]
    stats = [lse.new_empty(2, *lse.shape) for lse in lses]
    kept = len(qkv) if update_mean and n_bottlenecks > 0 else 0
    slots = qkv[0].new_empty(kept, batch, n_bottlenecks, heads, head_dim)
    lengths = [None if entry is None else entry.contiguous() for entry in lengths]
    if any(out.numel() for out in outs):
        module, dtype = native.cuda_module(), qkv[0].dtype
        own_slots = list(slots) if kept else [None] * len(qkv)
        with device_of(qkv[0]):
            module.bottleneck_attention_fwd(
                _call(qkv[0], n_bottlenecks, scale),
                [
                    module.StreamForward(
                        pointer("qkv", s, dtype), s.stride()[:4], s.shape[1],
                        pointer("lengths", length, torch.int32), out.data_ptr(), lse.data_ptr(),
                        stat.data_ptr(), pointer("slots", own, dtype),
                    )
                    for s, length, out, lse, stat, own in zip(
                        qkv, lengths, outs, lses, stats, own_slots, strict=True
                    )
                ],
            )  # fmt: skip
    return outs, lses, [*stats, slots]


def bottleneck_attention_bwd(
    douts: Sequence[Tensor],
    dlses: Lengths,
    outs: Sequence[Tensor],
    kept: Sequence[Tensor],
    qkv: Sequence[Tensor],
    lengths: Lengths,
    n_bottlenecks: int,
    update_mean: bool,
    scale: float,
) -> list[Tensor]:
    """Launch the backward.

    ``torch.use_deterministic_algorithms(True)`` selects the variant that repeats bit by bit; it
    needs seven products where the other needs five.

    Args:
        douts: ``[B, S_m, H, D]`` per stream, of any layout.
        dlses: float32 ``[B, H, S_m]`` per stream, of any layout, or ``None`` where the
            log-sum-exp is not used.
        outs: What the forward returned.
        kept: Likewise, its last result.
        qkv: As in the forward, like all that follow.
        lengths: Likewise.
        n_bottlenecks: Likewise.
        update_mean: Likewise.
        scale: Likewise.

    Returns:
        Packed gradients ``[B, S_m, 3, H, D]``, contiguous.

    Raises:
        ValueError: The kernels cannot run the call; nothing was launched.
    """
    batch, _, _, heads, head_dim = qkv[0].shape
    qkv = [copy_engine_readable(stream) for stream in qkv]
    douts = [copy_engine_readable(dout) for dout in douts]
    dlses = [None if entry is None else entry.contiguous() for entry in dlses]
    lengths = [None if entry is None else entry.contiguous() for entry in lengths]
    outs, (*stats, slots) = ([entry.contiguous() for entry in given] for given in (outs, kept))
    dqkv = [s.new_empty(s.shape) for s in qkv]
    if not any(entry.numel() for entry in dqkv):
        return dqkv
    module, dtype = native.cuda_module(), qkv[0].dtype
    update_mean = update_mean and n_bottlenecks > 0
    own_slots = list(slots) if update_mean else [None] * len(qkv)
    dslots = qkv[0].new_empty(batch, n_bottlenecks, heads, head_dim) if update_mean else None
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    with device_of(qkv[0]):
        call = _call(qkv[0], n_bottlenecks, scale)
        workspaces = [
            s.new_empty(
                module.backward_workspace(call, s.shape[1], is_deterministic), dtype=torch.float32
            )
            for s in qkv
        ]
        streams = zip(
            qkv, lengths, outs, own_slots, stats, douts, dlses, workspaces, dqkv, strict=True
        )
        module.bottleneck_attention_bwd(
            call,
            [
                module.StreamBackward(
                    pointer("qkv", s, dtype), s.stride()[:4], s.shape[1],
                    pointer("lengths", length, torch.int32), pointer("outs", out, dtype),
                    pointer("slots", own, dtype), pointer("stats", stat, torch.float32),
                    pointer("douts", dout, dtype), dout.stride()[:3],
                    pointer("dlses", dlse, torch.float32), workspace.data_ptr(),
                    dstream.data_ptr(),
                )
                for s, length, out, own, stat, dout, dlse, workspace, dstream in streams
            ],
            pointer("dslots", dslots, dtype),
            is_deterministic,
        )  # fmt: skip
    return dqkv


def _call(stream: Tensor, n_bottlenecks: int, scale: float) -> object:
    batch, _, _, heads, head_dim = stream.shape
    return native.cuda_module().Call(
        str(stream.dtype).removeprefix("torch."),
        (batch, heads, n_bottlenecks, head_dim),
        scale,
        queue_of(stream),
    )
