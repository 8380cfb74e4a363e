"""Forward of residual sum and slot mean: all streams in one launch.

A stream ``[B, S, C]`` has ``S = N + P`` rows: own tokens, then slots::

    x = stream + branch        for the examples that keep the branch, else x = stream
    x = mean of x over the present streams, in the slots of all, absent ones too          (Eq. 9)

Programs. One of own rows takes BLOCK_R rows of one example of one stream, all channels at once.
One of slots takes BLOCK_R slots of one example of all streams: it alone reads and writes them. With
P = 0 there are own rows alone.

Invariants.
- Every element is written by exactly one program; rows do not meet but in the slots.
- Everything is float32 until it is written.
- A branch that its example drops, and the slots of an absent stream, are never loaded.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mbt_fast.kernels.launch import (
    OPTIONS,
    device_of,
    given_lengths,
    given_masks,
    last_dim_contiguous,
    numbers,
    strides_of,
)
from mbt_fast.kernels.rows import load_sum, mean_of_slots
from mbt_fast.kernels.table import row_tile
from mbt_fast.kernels.tiles import find_stream, pick, pick_int, store_tile


@triton.jit(do_not_specialize=["B", "P", "slot_tiles"])
def residual_add_fwd_kernel(
    stream_ptrs,  # M x [B, S_m, C]
    branch_ptrs,  # M x [B, S_m, C]
    sum_ptrs,  # M x [B, S_m, C], contiguous
    keep_ptrs,  # M x uint8 [B], where bit m of HAS_KEEP is set
    length_ptrs,  # M x int32 [B], where bit m of HAS_LENGTHS is set
    strides,  # M x (batch, row)
    branch_strides,  # M x (batch, row)
    rows,  # M x S_m
    tiles,  # M x tiles of own rows per example
    slot_tiles,  # per example, 0 without slots
    B,
    P,
    M: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    SHARES: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """See the head of this file."""
    ALL: tl.constexpr = 2**M - 1  # every stream has a branch
    pid = tl.program_id(0).to(tl.int64)
    slot_programs = tl.cast(slot_tiles, tl.int64) * B
    if SHARES and pid < slot_programs:
        b = pid // slot_tiles
        slot = (pid % slot_tiles) * BLOCK_R + tl.arange(0, BLOCK_R)
        mean = mean_of_slots(
            stream_ptrs, branch_ptrs, keep_ptrs, length_ptrs, strides, branch_strides, rows, slot,
            b, P, M, ALL, HAS_KEEP, HAS_LENGTHS, C, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        for m in tl.static_range(M):
            S = pick_int(rows, m, M)
            store_tile(sum_ptrs[m] + b * S * C, slot + (S - P), C, mean, slot < P, C, BLOCK_C)
    else:
        m, b, tile = find_stream(pid - slot_programs, tiles, B, M)
        S = pick_int(rows, m, M)
        row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
        inside = row < S - P
        x = load_sum(
            stream_ptrs, branch_ptrs, keep_ptrs, strides, branch_strides, m, b, row, inside, M, ALL,
            HAS_KEEP, C, BLOCK_C,
        )  # fmt: skip
        store_tile(pick(sum_ptrs, m, M) + b * S * C, row, C, x, inside, C, BLOCK_C)


def launch(
    sums: Sequence[Tensor],
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    keep: Sequence[Tensor | None],
    lengths: Sequence[Tensor | None],
    n_bottlenecks: int,
) -> None:
    """Fill the sums of ``residual_add``."""
    streams = [last_dim_contiguous(stream) for stream in streams]
    branches = [last_dim_contiguous(branch) for branch in branches]
    batch, _, channels = streams[0].shape
    masks, has_keep = given_masks(keep, streams[0])
    valid, has_lengths = given_lengths(lengths, streams[0])
    rows = tuple(stream.shape[1] for stream in streams)
    tile = row_tile(channels)
    tiles = tuple(triton.cdiv(s - n_bottlenecks, tile.block_r) for s in rows)
    slot_tiles = triton.cdiv(n_bottlenecks, tile.block_r)
    programs = (sum(tiles) + slot_tiles) * batch
    if not programs:
        return
    with device_of(streams[0]):
        residual_add_fwd_kernel[(programs,)](
            tuple(streams), tuple(branches), tuple(sums), masks, valid, strides_of(streams),
            strides_of(branches), numbers(rows), numbers(tiles), slot_tiles, batch, n_bottlenecks,
            M=len(streams), HAS_KEEP=has_keep, HAS_LENGTHS=has_lengths,
            SHARES=n_bottlenecks > 0, C=channels, BLOCK_R=tile.block_r, BLOCK_C=tile.block_c,
            num_warps=tile.num_warps, **OPTIONS,
        )  # fmt: skip
