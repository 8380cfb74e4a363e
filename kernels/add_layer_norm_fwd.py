"""Forward of residual sum, slot mean and LayerNorm: all streams in one launch.

A stream ``[B, S, C]`` has ``S = N + P`` rows: own tokens, then slots::

    x = stream + branch        for the examples that keep the branch, else x = stream
    x = mean of x over the present streams, in the slots; 0 where the stream is absent    (Eq. 9)
    sums = x        normed = (x - mean(x)) * rstd(x) * weight + bias

Programs. One of own rows takes BLOCK_R rows of one example of one stream, all channels at once.
One of slots takes BLOCK_R slots of one example of all streams: it alone reads and writes them.

Invariants.
- Every element is written by exactly one program; rows do not meet but in the slots.
- What is written to ``sums``, rounded, is what is normalised. Everything else is float32.
- A branch that its example drops, and the slots of an absent stream, are never loaded.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

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
from mbt_fast.kernels.rows import is_marked, is_set, load_channels, load_sum, mean_of_slots
from mbt_fast.kernels.table import row_tile
from mbt_fast.kernels.tiles import find_stream, only_if, pick, pick_int, store_tile


@triton.jit
def _write(
    x, sum_ptrs, normed_ptrs, stats_ptrs, weight_ptrs, bias_ptrs, m, b, row, inside, S, B, eps,
    M: tl.constexpr, WRITES_SUM: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Round ``x``, normalise it, and write both with the statistics."""
    normed_ptr = pick(normed_ptrs, m, M) + b * S * C
    x = x.to(normed_ptr.dtype.element_ty)
    if WRITES_SUM != 0:
        sum_ptr = pick(sum_ptrs, m, M) + b * S * C
        store_tile(sum_ptr, row, C, x, only_if(inside, is_set(WRITES_SUM, m, M)), C, BLOCK_C)
    x = x.to(tl.float32)
    mean = tl.sum(x, 1) / C
    deviation = tl.where(tl.arange(0, BLOCK_C)[None, :] < C, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(deviation * deviation, 1) / C + eps)
    weight = load_channels(pick(weight_ptrs, m, M), C, BLOCK_C)
    bias = load_channels(pick(bias_ptrs, m, M), C, BLOCK_C)
    normed = deviation * rstd[:, None] * weight + bias
    store_tile(normed_ptr, row, C, normed, inside, C, BLOCK_C)
    stats_ptr = pick(stats_ptrs, m, M) + b * S + row
    tl.store(stats_ptr, mean, mask=inside)
    tl.store(stats_ptr + tl.cast(B, tl.int64) * S, rstd, mask=inside)


@triton.jit
def _slots_of_all(
    stream_ptrs, branch_ptrs, sum_ptrs, normed_ptrs, stats_ptrs, weight_ptrs, bias_ptrs, keep_ptrs,
    length_ptrs, strides, branch_strides, rows, tile, b, B, P, eps, M: tl.constexpr,
    HAS_BRANCH: tl.constexpr, WRITES_SUM: tl.constexpr, HAS_KEEP: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One tile of slots: their mean over the present streams, written and normalised in all."""
    slot = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    mean = mean_of_slots(
        stream_ptrs, branch_ptrs, keep_ptrs, length_ptrs, strides, branch_strides, rows, slot, b, P,
        M, HAS_BRANCH, HAS_KEEP, HAS_LENGTHS, C, BLOCK_R, BLOCK_C,
    )  # fmt: skip
    for m in tl.static_range(M):
        S = pick_int(rows, m, M)
        shared = tl.where(is_marked(length_ptrs, HAS_LENGTHS, m, b, M), mean, 0.0)
        _write(
            shared, sum_ptrs, normed_ptrs, stats_ptrs, weight_ptrs, bias_ptrs, m, b, slot + (S - P),
            slot < P, S, B, eps, M, WRITES_SUM, C, BLOCK_C,
        )  # fmt: skip


@triton.jit(do_not_specialize=["B", "P", "slot_tiles"])
def add_layer_norm_fwd_kernel(
    stream_ptrs,  # M x [B, S_m, C]
    branch_ptrs,  # M x [B, S_m, C], where bit m of HAS_BRANCH is set
    sum_ptrs,  # M x [B, S_m, C], contiguous, where bit m of WRITES_SUM is set
    normed_ptrs,  # M x [B, S_m, C], contiguous
    stats_ptrs,  # M x float32 [2, B, S_m], contiguous: mean, reciprocal standard deviation
    weight_ptrs,  # M x [C]
    bias_ptrs,  # M x [C]
    keep_ptrs,  # M x uint8 [B], where bit m of HAS_KEEP is set
    length_ptrs,  # M x int32 [B], where bit m of HAS_LENGTHS is set
    strides,  # M x (batch, row)
    branch_strides,  # M x (batch, row)
    rows,  # M x S_m
    tiles,  # M x tiles of own rows per example
    slot_tiles,  # per example, 0 without slots
    B,
    P,
    eps,
    M: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    WRITES_SUM: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    SHARES: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """See the head of this file."""
    pid = tl.program_id(0).to(tl.int64)
    eps = tl.cast(eps, tl.float32)
    slot_programs = tl.cast(slot_tiles, tl.int64) * B
    if SHARES and pid < slot_programs:
        _slots_of_all(
            stream_ptrs, branch_ptrs, sum_ptrs, normed_ptrs, stats_ptrs, weight_ptrs, bias_ptrs,
            keep_ptrs, length_ptrs, strides, branch_strides, rows, pid % slot_tiles,
            pid // slot_tiles, B, P, eps, M, HAS_BRANCH, WRITES_SUM, HAS_KEEP, HAS_LENGTHS, C,
            BLOCK_R, BLOCK_C,
        )  # fmt: skip
    else:
        m, b, tile = find_stream(pid - slot_programs, tiles, B, M)
        S = pick_int(rows, m, M)
        row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
        inside = row < S - P
        x = load_sum(
            stream_ptrs, branch_ptrs, keep_ptrs, strides, branch_strides, m, b, row, inside, M,
            HAS_BRANCH, HAS_KEEP, C, BLOCK_C,
        )  # fmt: skip
        _write(
            x, sum_ptrs, normed_ptrs, stats_ptrs, weight_ptrs, bias_ptrs, m, b, row, inside, S, B,
            eps, M, WRITES_SUM, C, BLOCK_C,
        )  # fmt: skip


def launch(
    sums: Sequence[Tensor],
    normed: Sequence[Tensor],
    stats: Sequence[Tensor],
    streams: Sequence[Tensor],
    branches: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    keep: Sequence[Tensor | None],
    lengths: Sequence[Tensor | None],
    n_bottlenecks: int,
    eps: float,
) -> None:
    """Fill the results of ``add_layer_norm``: sums, empty where not written, their norm, stats."""
    streams = [last_dim_contiguous(stream) for stream in streams]
    batch, _, channels = streams[0].shape
    written = [n_bottlenecks > 0 or branch is not None for branch in branches]
    added, has_branch = given(branches, streams[0], last_dim_contiguous)
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
        add_layer_norm_fwd_kernel[(programs,)](
            tuple(streams), added, tuple(sums), tuple(normed), tuple(stats), one_dtype(weights),
            one_dtype(biases), masks, valid, strides_of(streams), strides_of(added), numbers(rows),
            numbers(tiles), slot_tiles, batch, n_bottlenecks, eps, M=len(streams),
            HAS_BRANCH=has_branch,
            WRITES_SUM=sum(1 << m for m, is_written in enumerate(written) if is_written),
            HAS_KEEP=has_keep, HAS_LENGTHS=has_lengths, SHARES=n_bottlenecks > 0, C=channels,
            BLOCK_R=tile.block_r, BLOCK_C=tile.block_c, num_warps=tile.num_warps, **OPTIONS,
        )  # fmt: skip
