"""Launchers of residual sum and slot mean: forward and backward for all streams."""

from collections.abc import Sequence

import triton
from torch import Tensor

from mbt_fast.kernels.launch import (
    device_of,
    given_lengths,
    given_masks,
    strides_of,
    unit_last_stride,
)
from mbt_fast.kernels.residual_add_bwd import residual_add_bwd_kernel
from mbt_fast.kernels.residual_add_fwd import residual_add_fwd_kernel
from mbt_fast.kernels.table import row_tile

Optional = Sequence[Tensor | None]


def residual_add_fwd(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    keep: Optional,
    lengths: Optional,
    n_bottlenecks: int,
) -> list[Tensor]:
    """Launch the forward.

    Arguments are those of ``mbt_fast.functional.residual_add``, checked and complete.

    Returns:
        The sums ``[B, S_m, C]`` of each stream, contiguous.
    """
    streams = [unit_last_stride(stream) for stream in streams]
    branches = [unit_last_stride(branch) for branch in branches]
    batch, _, channels = streams[0].shape
    sums = [stream.new_empty(stream.shape) for stream in streams]
    masks, has_keep = given_masks(keep, streams[0])
    valid, has_lengths = given_lengths(lengths, streams[0])
    rows = tuple(stream.shape[1] for stream in streams)
    tile = row_tile(channels)
    tiles = tuple(triton.cdiv(s - n_bottlenecks, tile.block_r) for s in rows)
    slot_tiles = triton.cdiv(n_bottlenecks, tile.block_r)
    programs = (sum(tiles) + slot_tiles) * batch
    if programs:
        with device_of(streams[0]):
            residual_add_fwd_kernel[(programs,)](
                tuple(streams), tuple(branches), tuple(sums), masks, valid, strides_of(streams),
                strides_of(branches), rows, tiles, slot_tiles, batch, n_bottlenecks,
                M=len(streams), HAS_KEEP=has_keep, HAS_LENGTHS=has_lengths,
                SHARES=n_bottlenecks > 0, C=channels, BLOCK_R=tile.block_r, BLOCK_C=tile.block_c,
                num_warps=tile.num_warps,
            )  # fmt: skip
    return sums


def residual_add_bwd(
    dsums: Sequence[Tensor], keep: Optional, lengths: Optional, n_bottlenecks: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Launch the backward.

    Args:
        dsums: ``[B, S_m, C]`` per stream, of any layout.
        keep: As in the forward, like all that follow.
        lengths: Likewise.
        n_bottlenecks: Likewise.

    Returns:
        Per stream the gradient of the stream, contiguous, empty without slots, where it is
        ``dsums``; and of the branch, empty without ``keep``, where it is the stream's.
    """
    dsums = [unit_last_stride(dsum) for dsum in dsums]
    batch, _, channels = dsums[0].shape
    dx = [dsum.new_empty(dsum.shape if n_bottlenecks else 0) for dsum in dsums]
    dbranches = [
        dsum.new_empty(0 if kept is None else dsum.shape)
        for dsum, kept in zip(dsums, keep, strict=True)
    ]
    masks, has_keep = given_masks(keep, dsums[0])
    valid, has_lengths = given_lengths(lengths, dsums[0])
    rows = tuple(dsum.shape[1] for dsum in dsums)
    tile = row_tile(channels)
    tiles = tuple(
        triton.cdiv(s - n_bottlenecks, tile.block_r) if n_bottlenecks or kept is not None else 0
        for s, kept in zip(rows, keep, strict=True)
    )
    slot_tiles = triton.cdiv(n_bottlenecks, tile.block_r)
    programs = (sum(tiles) + slot_tiles) * batch
    if programs:
        with device_of(dsums[0]):
            residual_add_bwd_kernel[(programs,)](
                tuple(dsums), tuple(dx), tuple(dbranches), masks, valid, strides_of(dsums), rows,
                tiles, slot_tiles, batch, n_bottlenecks, M=len(dsums), HAS_KEEP=has_keep,
                HAS_LENGTHS=has_lengths, SHARES=n_bottlenecks > 0, C=channels,
                BLOCK_R=tile.block_r, BLOCK_C=tile.block_c, num_warps=tile.num_warps,
            )  # fmt: skip
    return dx, dbranches
