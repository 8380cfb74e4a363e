"""Launchers of bottleneck attention on NVIDIA Hopper: all streams of a call at once."""

from collections.abc import Sequence
from typing import NoReturn

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
                module.Call(
                    str(dtype).removeprefix("torch."), (batch, heads, n_bottlenecks, head_dim),
                    scale, queue_of(qkv[0]),
                ),
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


def bottleneck_attention_bwd(*arguments: object) -> NoReturn:
    """Refuse: there is no backward for Hopper yet.

    Raises:
        NotImplementedError: Always.
    """
    raise NotImplementedError("backend 'cuda' has no backward yet; use 'triton' or 'sdpa'")
