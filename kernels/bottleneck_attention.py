"""Launchers of bottleneck attention: forward and backward for all streams of a call."""

import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from mbt_fast.kernels.bottleneck_attention_bwd import (
    bottleneck_attention_bwd_delta_kernel,
    bottleneck_attention_bwd_dkdv_kernel,
    bottleneck_attention_bwd_dq_kernel,
)
from mbt_fast.kernels.bottleneck_attention_fwd import bottleneck_attention_fwd_kernel
from mbt_fast.kernels.launch import (
    Streams,
    block_d,
    device_of,
    precision_of,
    strides_of,
    unit_last_stride,
)
from mbt_fast.kernels.table import tiles_for

Lengths = Sequence[Tensor | None]


def bottleneck_attention_fwd(
    qkv: Sequence[Tensor], lengths: Lengths, n_bottlenecks: int, update_mean: bool, scale: float
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Launch the forward.

    Arguments are those of ``mbt_fast.bottleneck_attention``, checked and complete.

    Returns:
        ``out`` ``[B, S_m, H, D]`` per stream, ``lse`` float32 ``[B, H, S_m]`` per stream, and what
        the backward needs besides: per stream the maximum and the sum of the softmax, float32
        ``[2, B, H, S_m]``, and last the slots before the shared update, ``[M, B, P, H, D]`` in the
        order of the launch, empty without it.
    """
    streams = Streams.of(qkv, lengths)
    batch, _, _, heads, head_dim = qkv[0].shape
    outs = [s.new_empty(batch, s.shape[1], heads, head_dim) for s in streams.qkv]
    lses = [s.new_empty(batch, heads, s.shape[1], dtype=torch.float32) for s in streams.qkv]
    stats = [lse.new_empty(2, *lse.shape) for lse in lses]
    update_mean = update_mean and n_bottlenecks > 0
    kept = len(qkv) if update_mean else 0
    slots = qkv[0].new_empty(kept, batch, n_bottlenecks, heads, head_dim)
    tiles = tiles_for("fwd_mean" if update_mean else "fwd", qkv[0])
    own = [s - n_bottlenecks if update_mean else s for s in streams.rows()]
    row_tiles = tuple(triton.cdiv(rows, tiles.block_m) for rows in own)
    slot_tiles = triton.cdiv(n_bottlenecks, tiles.block_m) if update_mean else 0
    programs = (sum(row_tiles) + slot_tiles) * batch * heads
    if programs:
        with device_of(qkv[0]):
            bottleneck_attention_fwd_kernel[(programs,)](
                tuple(streams.qkv),
                tuple(outs),
                tuple(lses),
                tuple(stats),
                slots,
                tuple(streams.lengths),
                strides_of(streams.qkv),
                streams.rows(),
                row_tiles,
                slot_tiles,
                batch,
                heads,
                n_bottlenecks,
                scale * math.log2(math.e),
                M=len(qkv),
                HAS_LENGTHS=streams.has_lengths,
                UPDATE_MEAN=update_mean,
                D=head_dim,
                BLOCK_D=block_d(head_dim),
                BLOCK_M=tiles.block_m,
                BLOCK_N=tiles.block_n,
                PRECISION=precision_of(qkv[0].dtype),
                num_warps=tiles.num_warps,
                num_stages=tiles.num_stages,
            )
    return streams.restore(outs), streams.restore(lses), [*streams.restore(stats), slots]


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
    """
    streams = Streams.of(qkv, lengths)
    batch, _, _, heads, head_dim = qkv[0].shape
    update_mean = update_mean and n_bottlenecks > 0
    if update_mean:
        douts = _through_the_mean(douts, lengths, n_bottlenecks)
    grads = tuple(unit_last_stride(dout) for dout in streams.arrange(douts))
    stats, slots = streams.arrange(kept[:-1]), kept[-1]
    deltas = tuple(entry.new_empty(entry.shape[1:]) for entry in stats)
    dqkv = [s.new_empty(s.shape) for s in streams.qkv]
    if not batch * heads * sum(streams.rows()):
        return streams.restore(dqkv)
    shared = {
        "M": len(qkv),
        "HAS_LENGTHS": streams.has_lengths,
        "D": head_dim,
        "BLOCK_D": block_d(head_dim),
    }

    def place(block: int) -> tuple[tuple[int], tuple[object, ...]]:
        """The grid for tiles of ``block`` rows, and the sizes that every kernel takes."""
        tiles = tuple(triton.cdiv(count, block) for count in streams.rows())
        return (sum(tiles) * batch * heads,), (streams.rows(), tiles, batch, heads, n_bottlenecks)

    with device_of(qkv[0]):
        tiles = tiles_for("delta", qkv[0])
        grid, sizes = place(tiles.block_m)
        dlse = [None if d is None else d.contiguous() for d in streams.arrange(dlses)]
        bottleneck_attention_bwd_delta_kernel[grid](
            tuple(streams.qkv), tuple(streams.arrange(outs)), slots, grads,
            tuple(deltas[0] if d is None else d for d in dlse), tuple(stats), deltas,
            tuple(streams.lengths), strides_of(streams.qkv), strides_of(grads), *sizes, scale,
            HAS_DLSE=sum(1 << m for m, d in enumerate(dlse) if d is not None),
            UPDATE_MEAN=update_mean, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n,
            PRECISION=precision_of(qkv[0].dtype), num_warps=tiles.num_warps,
            num_stages=tiles.num_stages, **shared,
        )  # fmt: skip
        for kernel, name in (
            (bottleneck_attention_bwd_dkdv_kernel, "dkdv"),
            (bottleneck_attention_bwd_dq_kernel, "dq"),
        ):
            tiles = tiles_for(name, qkv[0])
            grid, sizes = place(tiles.block_m)
            kernel[grid](
                tuple(streams.qkv), grads, tuple(stats), deltas, tuple(dqkv),
                tuple(streams.lengths), strides_of(streams.qkv), strides_of(grads), *sizes, scale,
                BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n,
                PRECISION=precision_of(qkv[0].dtype), num_warps=tiles.num_warps,
                num_stages=tiles.num_stages, **shared,
            )  # fmt: skip
    return streams.restore(dqkv)


def _through_the_mean(
    douts: Sequence[Tensor], lengths: Lengths, n_bottlenecks: int
) -> list[Tensor]:
    """Give the slots of every stream the mean's gradient: the sum over present ones / count."""
    total: Tensor | float = 0.0
    count: Tensor | float = 0.0
    for dout, length in zip(douts, lengths, strict=True):
        slots = dout[:, dout.shape[1] - n_bottlenecks :].float()
        if length is None:
            total, count = total + slots, count + 1.0
        else:
            present = (length > 0)[:, None, None, None]
            total, count = total + torch.where(present, slots, 0.0), count + present.float()
    mean = torch.as_tensor(total / (count.clamp(min=1) if isinstance(count, Tensor) else count))
    own = [dout[:, : dout.shape[1] - n_bottlenecks] for dout in douts]
    return [torch.cat([rows, mean.to(rows.dtype)], dim=1) for rows in own]
