"""Launchers of residual sum, slot mean and LayerNorm: forward and backward for all streams."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from mbt_fast.kernels.add_layer_norm_bwd import add_layer_norm_bwd_kernel
from mbt_fast.kernels.add_layer_norm_fwd import add_layer_norm_fwd_kernel
from mbt_fast.kernels.column_sums import sum_columns, tiles_per_chunk
from mbt_fast.kernels.launch import (
    device_of,
    given,
    given_lengths,
    given_masks,
    strides_of,
    unit_last_stride,
)
from mbt_fast.kernels.table import row_tile

Optional = Sequence[Tensor | None]


def add_layer_norm_fwd(
    streams: Sequence[Tensor],
    branches: Optional,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    keep: Optional,
    lengths: Optional,
    n_bottlenecks: int,
    eps: float,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Launch the forward.

    Arguments are those of ``mbt_fast.functional.add_layer_norm``, checked and complete.

    Returns:
        Per stream the sums ``[B, S_m, C]``, empty where they are the stream itself; the normalised
        sums; and what the backward needs besides, float32 ``[2, B, S_m]``: mean and reciprocal
        standard deviation of each row.
    """
    streams = [unit_last_stride(stream) for stream in streams]
    batch, _, channels = streams[0].shape
    written = [n_bottlenecks > 0 or branch is not None for branch in branches]
    sums = [s.new_empty(s.shape if w else 0) for s, w in zip(streams, written, strict=True)]
    normed = [stream.new_empty(stream.shape) for stream in streams]
    stats = [s.new_empty(2, *s.shape[:2], dtype=torch.float32) for s in streams]
    added, has_branch = given(branches, streams[0], unit_last_stride)
    masks, has_keep = given_masks(keep, streams[0])
    valid, has_lengths = given_lengths(lengths, streams[0])
    rows = tuple(stream.shape[1] for stream in streams)
    tile = row_tile(channels)
    tiles = tuple(triton.cdiv(s - n_bottlenecks, tile.block_r) for s in rows)
    slot_tiles = triton.cdiv(n_bottlenecks, tile.block_r)
    programs = (sum(tiles) + slot_tiles) * batch
    if programs:
        with device_of(streams[0]):
            add_layer_norm_fwd_kernel[(programs,)](
                tuple(streams), added, tuple(sums), tuple(normed), tuple(stats), _alike(weights),
                _alike(biases), masks, valid, strides_of(streams), strides_of(added), rows, tiles,
                slot_tiles, batch, n_bottlenecks, eps, M=len(streams), HAS_BRANCH=has_branch,
                WRITES_SUM=sum(1 << m for m, is_written in enumerate(written) if is_written),
                HAS_KEEP=has_keep, HAS_LENGTHS=has_lengths, SHARES=n_bottlenecks > 0, C=channels,
                BLOCK_R=tile.block_r, BLOCK_C=tile.block_c, num_warps=tile.num_warps,
            )  # fmt: skip
    return sums, normed, stats


def add_layer_norm_bwd(
    dsums: Optional,
    dnormed: Sequence[Tensor],
    sums: Sequence[Tensor],
    stats: Sequence[Tensor],
    weights: Sequence[Tensor],
    keep: Optional,
    lengths: Optional,
    n_bottlenecks: int,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Launch the backward.

    Args:
        dsums: ``[B, S_m, C]`` per stream, of any layout, or ``None`` where the sums are not used.
        dnormed: ``[B, S_m, C]`` per stream, of any layout.
        sums: What was normalised.
        stats: What the forward returned last.
        weights: As in the forward, like all that follow.
        keep: Likewise.
        lengths: Likewise.
        n_bottlenecks: Likewise.

    Returns:
        Per stream the gradient of the stream, contiguous; of the branch, empty without ``keep``,
        where it is the stream's; of the weight; of the bias.
    """
    sums, dnormed = ([unit_last_stride(t) for t in kind] for kind in (sums, dnormed))
    batch, _, channels = sums[0].shape
    dx = [total.new_empty(total.shape) for total in sums]
    dbranches = [
        total.new_empty(0 if kept is None else total.shape)
        for total, kept in zip(sums, keep, strict=True)
    ]
    wide = _alike(weights)
    dparameters = [weight.new_empty(weight.shape) for weight in (*wide, *wide)]
    also, has_dsum = given(dsums, sums[0], unit_last_stride)
    masks, has_keep = given_masks(keep, sums[0])
    valid, has_lengths = given_lengths(lengths, sums[0])
    rows = tuple(total.shape[1] for total in sums)
    tile = row_tile(channels)
    tiles = tuple(triton.cdiv(s, tile.block_r) for s in rows)
    step = tiles_per_chunk(sum(tiles) * batch, tile.block_r)
    chunks = tuple(triton.cdiv(count * batch, step) for count in tiles)
    slot_tiles = triton.cdiv(n_bottlenecks, tile.block_r)
    partial = sums[0].new_empty(2, sum(chunks), channels, dtype=torch.float32)
    with device_of(sums[0]):
        if sum(chunks):
            add_layer_norm_bwd_kernel[(sum(chunks) + slot_tiles * batch,)](
                tuple(sums), tuple(dnormed), also, tuple(dx), tuple(dbranches),
                tuple(stat.contiguous() for stat in stats), wide, partial, masks, valid,
                strides_of(sums), strides_of(dnormed), strides_of(also), rows, tiles, chunks, step,
                sum(chunks), slot_tiles, batch, n_bottlenecks, M=len(sums), HAS_DSUM=has_dsum,
                HAS_KEEP=has_keep, HAS_LENGTHS=has_lengths, SHARES=n_bottlenecks > 0, C=channels,
                BLOCK_R=tile.block_r, BLOCK_C=tile.block_c, num_warps=tile.num_warps,
            )  # fmt: skip
        sum_columns(partial.flatten(0, 1), dparameters, (*chunks, *chunks))
    both = zip(dparameters, (*weights, *weights), strict=True)
    grads = [grad.to(weight.dtype) for grad, weight in both]
    return dx, dbranches, grads[: len(weights)], grads[len(weights) :]


def _alike(parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Parameters of one dtype, contiguous: a tuple of pointers has one."""
    same = len({parameter.dtype for parameter in parameters}) == 1
    return tuple((p if same else p.float()).contiguous() for p in parameters)
