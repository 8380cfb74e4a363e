"""Backward of residual sum, slot mean and LayerNorm: all streams, one pass over the rows.

Notation as in the forward; ``dnormed`` and ``dsums`` [B, S, C] arrive. With
xhat = (x - mean) * rstd, g = dnormed * weight, and means over the channels::

    dx = (g - mean(g) - xhat * mean(g * xhat)) * rstd + dsums
    dx = mean of dx over the present streams, in the slots; 0 where the stream is absent
    dstream = dx        dbranch = dx for the examples that keep the branch, else 0
    dweight = sum over all rows of dnormed * xhat        dbias = sum over all rows of dnormed

Programs. One of rows walks along a chunk: ``step`` tiles of BLOCK_R rows of one stream, across its
examples. It writes dx of own rows, and its partial sums of dweight and dbias, slots included, which
``column_sums`` adds up in the order of the chunks. One of slots takes BLOCK_R slots of one example
of all streams and writes their dx.

Invariants.
- Every element is written by exactly one program: no atomics. Chunks depend on the shape alone, so
  that all results are bitwise repeatable.
- Gradients of the slots of an absent stream are loaded for dweight and dbias alone.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mbt_fast.kernels.column_sums import sum_columns, tiles_per_chunk
from mbt_fast.kernels.launch import (
    OPTIONS,
    device_of,
    given,
    given_lengths,
    given_masks,
    last_dim_contiguous,
    numbers,
    one_dtype,
    strides_of,
)
from mbt_fast.kernels.rows import (
    is_marked,
    is_set,
    load_channels,
    load_rows,
    store_branch_gradient,
)
from mbt_fast.kernels.table import row_tile
from mbt_fast.kernels.tiles import find_stream, only_if, pick, pick_int, store_tile


@triton.jit
def _gradient(
    x_ptrs, dnormed_ptrs, dsum_ptrs, stats_ptrs, weight, strides, dnormed_strides, dsum_strides, m,
    b, row, inside, S, B, M: tl.constexpr, HAS_DSUM: tl.constexpr, C: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What dx is before slots are shared, dnormed, xhat: float32 ``[BLOCK_R, BLOCK_C]`` each."""
    stats_ptr = pick(stats_ptrs, m, M) + b * S + row
    mean = tl.load(stats_ptr, mask=inside, other=0.0)
    rstd = tl.load(stats_ptr + tl.cast(B, tl.int64) * S, mask=inside, other=0.0)
    x = load_rows(x_ptrs, strides, m, b, row, inside, M, C, BLOCK_C)
    dnormed = load_rows(dnormed_ptrs, dnormed_strides, m, b, row, inside, M, C, BLOCK_C)
    xhat = (x - mean[:, None]) * rstd[:, None]
    g = dnormed * weight
    along_mean = tl.sum(g, 1) / C
    along_xhat = tl.sum(g * xhat, 1) / C
    dx = (g - along_mean[:, None] - xhat * along_xhat[:, None]) * rstd[:, None]
    if HAS_DSUM != 0:
        given = only_if(inside, is_set(HAS_DSUM, m, M))
        dx += load_rows(dsum_ptrs, dsum_strides, m, b, row, given, M, C, BLOCK_C)
    return dx, dnormed, xhat


@triton.jit
def _write(
    dx, dx_ptrs, dbranch_ptrs, keep_ptrs, m, b, row, inside, S, M: tl.constexpr,
    HAS_KEEP: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the stream, and that of the branch where it is another."""
    store_tile(pick(dx_ptrs, m, M) + b * S * C, row, C, dx, inside, C, BLOCK_C)
    store_branch_gradient(
        dx, dbranch_ptrs, keep_ptrs, m, b, row, inside, S, M, HAS_KEEP, C, BLOCK_C
    )


@triton.jit
def _slots_of_all(
    x_ptrs, dnormed_ptrs, dsum_ptrs, dx_ptrs, dbranch_ptrs, stats_ptrs, weight_ptrs, keep_ptrs,
    length_ptrs, strides, dnormed_strides, dsum_strides, rows, tile, b, B, P, M: tl.constexpr,
    HAS_DSUM: tl.constexpr, HAS_KEEP: tl.constexpr, HAS_LENGTHS: tl.constexpr, C: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One tile of slots: the mean of dx over the present streams, written to all."""
    slot = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    count = tl.cast(0.0, tl.float32)
    for m in tl.static_range(M):
        present = is_marked(length_ptrs, HAS_LENGTHS, m, b, M)
        count += present.to(tl.float32)
        S = pick_int(rows, m, M)
        dx, _, _ = _gradient(
            x_ptrs, dnormed_ptrs, dsum_ptrs, stats_ptrs, load_channels(weight_ptrs[m], C, BLOCK_C),
            strides, dnormed_strides, dsum_strides, m, b, slot + (S - P),
            only_if(slot < P, present), S, B, M, HAS_DSUM, C, BLOCK_C,
        )  # fmt: skip
        total += dx
    mean = total / tl.maximum(count, 1.0)
    for m in tl.static_range(M):
        S = pick_int(rows, m, M)
        shared = tl.where(is_marked(length_ptrs, HAS_LENGTHS, m, b, M), mean, 0.0)
        _write(
            shared, dx_ptrs, dbranch_ptrs, keep_ptrs, m, b, slot + (S - P), slot < P, S, M,
            HAS_KEEP, C, BLOCK_C,
        )  # fmt: skip


@triton.jit
def _chunk_of_rows(
    x_ptrs, dnormed_ptrs, dsum_ptrs, dx_ptrs, dbranch_ptrs, stats_ptrs, weight_ptrs, partial_ptr,
    keep_ptrs, strides, dnormed_strides, dsum_strides, rows, tiles, chunks, step, all_chunks,
    number, B, P, M: tl.constexpr, HAS_DSUM: tl.constexpr, HAS_KEEP: tl.constexpr, C: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One chunk: dx of its own rows, and partial sums of dweight and dbias over all its rows."""
    m, _, chunk = find_stream(number, chunks, 1, M)
    S = pick_int(rows, m, M)
    per_example = pick_int(tiles, m, M)
    first = chunk * step
    last = tl.minimum(first + step, per_example * B)
    weight = load_channels(pick(weight_ptrs, m, M), C, BLOCK_C)
    dweight = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    dbias = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for tile in range(first, last):
        b = tile // per_example
        row = (tile - b * per_example) * BLOCK_R + tl.arange(0, BLOCK_R)
        dx, dnormed, xhat = _gradient(
            x_ptrs, dnormed_ptrs, dsum_ptrs, stats_ptrs, weight, strides, dnormed_strides,
            dsum_strides, m, b, row, row < S, S, B, M, HAS_DSUM, C, BLOCK_C,
        )  # fmt: skip
        dweight += dnormed * xhat
        dbias += dnormed
        _write(
            dx, dx_ptrs, dbranch_ptrs, keep_ptrs, m, b, row, row < S - P, S, M, HAS_KEEP, C,
            BLOCK_C,
        )  # fmt: skip
    channel = tl.arange(0, BLOCK_C)
    out_ptr = partial_ptr + number * C + channel
    tl.store(out_ptr, tl.sum(dweight, 0), mask=channel < C)
    tl.store(out_ptr + tl.cast(all_chunks, tl.int64) * C, tl.sum(dbias, 0), mask=channel < C)


@triton.jit(do_not_specialize=["B", "P", "step", "all_chunks", "slot_tiles"])
def add_layer_norm_bwd_kernel(
    x_ptrs,  # M x [B, S_m, C]: what was normalised
    dnormed_ptrs,  # M x [B, S_m, C]
    dsum_ptrs,  # M x [B, S_m, C], where bit m of HAS_DSUM is set
    dx_ptrs,  # M x [B, S_m, C], contiguous
    dbranch_ptrs,  # M x [B, S_m, C], contiguous, where bit m of HAS_KEEP is set
    stats_ptrs,  # M x float32 [2, B, S_m], contiguous: mean, reciprocal standard deviation
    weight_ptrs,  # M x [C]
    partial_ptr,  # float32 [2, all chunks, C]: of dweight, of dbias
    keep_ptrs,  # M x uint8 [B], where bit m of HAS_KEEP is set
    length_ptrs,  # M x int32 [B], where bit m of HAS_LENGTHS is set
    strides,  # M x (batch, row)
    dnormed_strides,  # M x (batch, row)
    dsum_strides,  # M x (batch, row)
    rows,  # M x S_m
    tiles,  # M x tiles of rows per example
    chunks,  # M x chunks of the stream
    step,  # tiles of a chunk
    all_chunks,
    slot_tiles,  # per example, 0 without slots
    B,
    P,
    M: tl.constexpr,
    HAS_DSUM: tl.constexpr,
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
            x_ptrs, dnormed_ptrs, dsum_ptrs, dx_ptrs, dbranch_ptrs, stats_ptrs, weight_ptrs,
            keep_ptrs, length_ptrs, strides, dnormed_strides, dsum_strides, rows, pid % slot_tiles,
            pid // slot_tiles, B, P, M, HAS_DSUM, HAS_KEEP, HAS_LENGTHS, C, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    else:
        _chunk_of_rows(
            x_ptrs, dnormed_ptrs, dsum_ptrs, dx_ptrs, dbranch_ptrs, stats_ptrs, weight_ptrs,
            partial_ptr, keep_ptrs, strides, dnormed_strides, dsum_strides, rows, tiles, chunks,
            step, all_chunks, pid - slot_programs, B, P, M, HAS_DSUM, HAS_KEEP, C, BLOCK_R, BLOCK_C,
        )  # fmt: skip


def launch(
    dxs: Sequence[Tensor],
    dbranches: Sequence[Tensor],
    dweights: Sequence[Tensor],
    dbiases: Sequence[Tensor],
    dsums: Sequence[Tensor | None],
    dnormed: Sequence[Tensor],
    sums: Sequence[Tensor],
    stats: Sequence[Tensor],
    weights: Sequence[Tensor],
    keep: Sequence[Tensor | None],
    lengths: Sequence[Tensor | None],
    n_bottlenecks: int,
) -> None:
    """Fill the gradients of ``add_layer_norm``; those of branches are empty without a mask."""
    sums, dnormed = ([last_dim_contiguous(t) for t in kind] for kind in (sums, dnormed))
    batch, _, channels = sums[0].shape
    wide = one_dtype(weights)
    grads = dparameters = [*dweights, *dbiases]
    if len({grad.dtype for grad in grads}) > 1:  # one dtype within the kernel
        dparameters = [weight.new_empty(weight.shape) for weight in (*wide, *wide)]
    also, has_dsum = given(dsums, sums[0], last_dim_contiguous)
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
                tuple(sums), tuple(dnormed), also, tuple(dxs), tuple(dbranches),
                tuple(stat.contiguous() for stat in stats), wide, partial, masks, valid,
                strides_of(sums), strides_of(dnormed), strides_of(also), numbers(rows),
                numbers(tiles), numbers(chunks), step, sum(chunks), slot_tiles, batch,
                n_bottlenecks, M=len(sums), HAS_DSUM=has_dsum, HAS_KEEP=has_keep,
                HAS_LENGTHS=has_lengths, SHARES=n_bottlenecks > 0, C=channels,
                BLOCK_R=tile.block_r, BLOCK_C=tile.block_c, num_warps=tile.num_warps, **OPTIONS,
            )  # fmt: skip
        sum_columns(partial.flatten(0, 1), dparameters, (*chunks, *chunks))
    for grad, summed in zip(grads, dparameters, strict=True):
        if grad is not summed:
            grad.copy_(summed)
