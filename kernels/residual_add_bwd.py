"""Backward of residual sum and slot mean: all streams in one launch.

Notation as in the forward; ``dsums`` [B, S, C] arrive::

    dx = dsums
    dx = (sum of dsums over all streams) / (number of present streams), in the slots;
         0 where the stream is absent
    dstream = dx        dbranch = dx for the examples that keep the branch, else 0

The sum is over all streams, because absent ones received the mean too.

Programs. As in the forward. Without slots dx is ``dsums`` itself and is not written; a stream
without ``keep``, whose dbranch is dx, then has no program.

Invariants.
- Every element is written by exactly one program: no atomics.
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
from mbt_fast.kernels.rows import is_marked, load_rows, store_branch_gradient
from mbt_fast.kernels.table import row_tile
from mbt_fast.kernels.tiles import find_stream, pick, pick_int, store_tile


@triton.jit
def _write(
    dx, dx_ptrs, dbranch_ptrs, keep_ptrs, m, b, row, inside, S, M: tl.constexpr,
    HAS_KEEP: tl.constexpr, SHARES: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradients of stream and branch, each where it is another than what arrived."""
    if SHARES:
        store_tile(pick(dx_ptrs, m, M) + b * S * C, row, C, dx, inside, C, BLOCK_C)
    store_branch_gradient(
        dx, dbranch_ptrs, keep_ptrs, m, b, row, inside, S, M, HAS_KEEP, C, BLOCK_C
    )


@triton.jit
def _slots_of_all(
    dsum_ptrs, dx_ptrs, dbranch_ptrs, keep_ptrs, length_ptrs, dsum_strides, rows, tile, b, P,
    M: tl.constexpr, HAS_KEEP: tl.constexpr, HAS_LENGTHS: tl.constexpr, C: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One tile of slots: what arrived at all streams, divided among the present ones."""
    slot = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    count = tl.cast(0.0, tl.float32)
    for m in tl.static_range(M):
        row = slot + (pick_int(rows, m, M) - P)
        total += load_rows(dsum_ptrs, dsum_strides, m, b, row, slot < P, M, C, BLOCK_C)
        count += is_marked(length_ptrs, HAS_LENGTHS, m, b, M).to(tl.float32)
    share = total / tl.maximum(count, 1.0)
    for m in tl.static_range(M):
        S = pick_int(rows, m, M)
        dx = tl.where(is_marked(length_ptrs, HAS_LENGTHS, m, b, M), share, 0.0)
        _write(
            dx, dx_ptrs, dbranch_ptrs, keep_ptrs, m, b, slot + (S - P), slot < P, S, M, HAS_KEEP,
            True, C, BLOCK_C,
        )  # fmt: skip


@triton.jit(do_not_specialize=["B", "P", "slot_tiles"])
def residual_add_bwd_kernel(
    dsum_ptrs,  # M x [B, S_m, C]
    dx_ptrs,  # M x [B, S_m, C], contiguous, if SHARES
    dbranch_ptrs,  # M x [B, S_m, C], contiguous, where bit m of HAS_KEEP is set
    keep_ptrs,  # M x uint8 [B], where bit m of HAS_KEEP is set
    length_ptrs,  # M x int32 [B], where bit m of HAS_LENGTHS is set
    dsum_strides,  # M x (batch, row)
    rows,  # M x S_m
    tiles,  # M x tiles of own rows per example, 0 where there is nothing to write
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
    pid = tl.program_id(0).to(tl.int64)
    slot_programs = tl.cast(slot_tiles, tl.int64) * B
    if SHARES and pid < slot_programs:
        _slots_of_all(
            dsum_ptrs, dx_ptrs, dbranch_ptrs, keep_ptrs, length_ptrs, dsum_strides, rows,
            pid % slot_tiles, pid // slot_tiles, P, M, HAS_KEEP, HAS_LENGTHS, C, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    else:
        m, b, tile = find_stream(pid - slot_programs, tiles, B, M)
        S = pick_int(rows, m, M)
        row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
        inside = row < S - P
        dx = load_rows(dsum_ptrs, dsum_strides, m, b, row, inside, M, C, BLOCK_C)
        _write(
            dx, dx_ptrs, dbranch_ptrs, keep_ptrs, m, b, row, inside, S, M, HAS_KEEP, SHARES, C,
            BLOCK_C,
        )  # fmt: skip


def launch(
    dxs: Sequence[Tensor],
    dbranches: Sequence[Tensor],
    dsums: Sequence[Tensor],
    keep: Sequence[Tensor | None],
    lengths: Sequence[Tensor | None],
    n_bottlenecks: int,
) -> None:
    """Fill the gradients of ``residual_add``: of streams with slots, of branches with a mask."""
    dsums = [last_dim_contiguous(dsum) for dsum in dsums]
    batch, _, channels = dsums[0].shape
    masks, has_keep = given_masks(keep, dsums[0])
    valid, has_lengths = given_lengths(lengths, dsums[0])
    rows = tuple(dsum.shape[1] for dsum in dsums)
    tile = row_tile(channels)
    tiles = tuple(
        triton.cdiv(s - n_bottlenecks, tile.block_r) if n_bottlenecks or mask is not None else 0
        for s, mask in zip(rows, keep, strict=True)
    )
    slot_tiles = triton.cdiv(n_bottlenecks, tile.block_r)
    programs = (sum(tiles) + slot_tiles) * batch
    if not programs:
        return
    with device_of(dsums[0]):
        residual_add_bwd_kernel[(programs,)](
            tuple(dsums), tuple(dxs), tuple(dbranches), masks, valid, strides_of(dsums),
            numbers(rows), numbers(tiles), slot_tiles, batch, n_bottlenecks, M=len(dsums),
            HAS_KEEP=has_keep, HAS_LENGTHS=has_lengths, SHARES=n_bottlenecks > 0, C=channels,
            BLOCK_R=tile.block_r, BLOCK_C=tile.block_c, num_warps=tile.num_warps, **OPTIONS,
        )  # fmt: skip
