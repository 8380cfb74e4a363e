"""Forward of bottleneck attention: all streams, and the shared update, in one launch.

Notation. ``M`` streams; stream m is packed ``qkv`` [B, S_m, 3, H, D], its last ``P`` rows slots.
``out`` [B, S_m, H, D], ``lse`` [B, H, S_m], natural logarithm. ``s`` are scores in units of
log2(e): ``s = q k^T * scale * log2(e)``, so that ``exp2`` serves.

Tiling. One program computes BLOCK_M rows of one head of one example of one stream, and walks along
the valid keys in steps of BLOCK_N::

                 keys: valid rows of the stream, padding left out
               +--------+--------+--------+----+
       rows    |  full  |  full  |  full  |tail|     m_i, l_i, acc live in registers
    BLOCK_M    +--------+--------+--------+----+
                BLOCK_N

Programs are numbered on one axis, which has no limit worth mentioning: streams in the order given
(the launcher's longest first), in a stream all tiles of (b, h) = (0, 0), then of (0, 1), and so on:
neighbours share keys in L2. With UPDATE_MEAN the slot rows belong to programs of their own, which
come first because they walk along the keys of every stream: they sum the slots of the present
streams in the order of the streams, and write the mean to all of them.

Invariants.
- Every element of out and lse is written by exactly one program; no atomics; bitwise repeatable.
- Rows of padding and absent streams get 0 and -inf; their values are never loaded.
- The first tile of keys holds a valid one, so m_i is finite after it, if the inputs are.
- The two parts of lse are kept apart for the backward: at scores of 1e4 their float32 sum has an
  error of 1e-3, and probabilities recomputed from it have one, too.
- Accumulation is in float32; probabilities are rounded to the dtype of v before the second product.
"""

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mbt_fast.kernels.launch import OPTIONS, Streams, block_d, device_of, precision_of, strides_of
from mbt_fast.kernels.table import tiles_for
from mbt_fast.kernels.tiles import (
    LN_2,
    head_of,
    is_needed,
    is_valid,
    load_tile,
    locate,
    pick,
    pick_int,
    pick_stride,
    row_of,
    store_tile,
    valid_counts,
)


@triton.jit
def _step(
    acc, l_i, m_i, q, k_ptr, v_ptr, stride, start, length, count, rows, P, qk_scale,
    MASKED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys of the online softmax."""
    number = start + tl.arange(0, BLOCK_N)
    row = row_of(number, length, rows, P)
    inside = number < count
    k = load_tile(k_ptr, row, stride, inside, D, BLOCK_D)  # [BLOCK_N, BLOCK_D]
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * qk_scale  # [BLOCK_M, BLOCK_N]
    if MASKED:
        s = tl.where(inside[None, :], s, float("-inf"))
    m_new = tl.maximum(m_i, tl.max(s, 1))
    p = tl.exp2(s - m_new[:, None])
    alpha = tl.exp2(m_i - m_new)
    v = load_tile(v_ptr, row, stride, inside, D, BLOCK_D)
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
    return acc, l_i * alpha + tl.sum(p, 1), m_new


@triton.jit
def _attend(
    q, k_ptr, v_ptr, stride, length, count, rows, P, qk_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of a tile of queries over ``count > 0`` keys: output, maximum, log2 of the sum."""
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    # Float32 products are long unrolled code: once, always masked, or the registers spill.
    PEEL: tl.constexpr = q.dtype != tl.float32
    full = count // BLOCK_N * BLOCK_N if PEEL else count
    for start in range(0, full, BLOCK_N):
        acc, l_i, m_i = _step(
            acc, l_i, m_i, q, k_ptr, v_ptr, stride, start, length, count, rows, P, qk_scale,
            not PEEL, D, BLOCK_D, BLOCK_N, PRECISION,
        )  # fmt: skip
    if PEEL and full < count:
        acc, l_i, m_i = _step(
            acc, l_i, m_i, q, k_ptr, v_ptr, stride, full, length, count, rows, P, qk_scale,
            True, D, BLOCK_D, BLOCK_N, PRECISION,
        )  # fmt: skip
    return acc / l_i[:, None], m_i, tl.log2(l_i)


@triton.jit
def _tile_of_rows(
    q_ptr, stride_s, stride_w, row, inside, length, count, rows, P, qk_scale, needed,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Output and both parts of the lse of some rows; 0, -inf and 0 for rows that are not valid."""
    out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    log2_sum = tl.zeros([BLOCK_M], tl.float32)
    valid = is_valid(row, length, count, rows, P) & inside
    if needed:
        q = load_tile(q_ptr, row, stride_s, valid, D, BLOCK_D)
        out, top, log2_sum = _attend(
            q, q_ptr + stride_w, q_ptr + 2 * stride_w, stride_s, length, count, rows, P,
            qk_scale, D, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION,
        )  # fmt: skip
        out = tl.where(valid[:, None], out, 0.0)
        top = tl.where(valid, top, float("-inf"))
        log2_sum = tl.where(valid, log2_sum, 0.0)
    return out, top, log2_sum


@triton.jit
def _store_lse(lse_ptr, stats_ptr, offset, half, top, log2_sum, mask):
    """The log-sum-exp, and apart its two parts for the backward, ``half`` elements apart."""
    tl.store(lse_ptr + offset, (top + log2_sum) * LN_2, mask=mask)
    tl.store(stats_ptr + offset, top, mask=mask)
    tl.store(stats_ptr + half + offset, log2_sum, mask=mask)


@triton.jit
def _slots_of_all(
    qkv_ptrs, out_ptrs, lse_ptrs, stats_ptrs, slot_ptr, length_ptrs, strides, rows, tile, b, h, B,
    H, P, qk_scale, M: tl.constexpr, HAS_LENGTHS: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of slots: of every stream its own output to ``slots``, and to out their mean."""
    slot = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = slot < P
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    present = 0
    for m in range(M):
        S = pick_int(rows, m, M)
        length, count = valid_counts(length_ptrs, m, b, S, P, M, HAS_LENGTHS)
        out, top, log2_sum = _tile_of_rows(
            head_of(qkv_ptrs, strides, 3, b, h, m, M), pick_stride(strides, 1, m, M),
            pick_stride(strides, 2, m, M), S - P + slot, inside, length, count, S, P, qk_scale,
            count > 0, D, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION,
        )  # fmt: skip
        present += (count > 0).to(tl.int32)
        total += out
        own_ptr = slot_ptr + ((m * B + b) * P * H + h) * D
        store_tile(own_ptr, slot, H * D, out, inside, D, BLOCK_D)
        _store_lse(
            pick(lse_ptrs, m, M), pick(stats_ptrs, m, M), (b * H + h) * S + S - P + slot,
            tl.cast(B, tl.int64) * H * S, top, log2_sum, inside,
        )  # fmt: skip
    mean = total / tl.maximum(present, 1).to(tl.float32)
    for m in range(M):
        S = pick_int(rows, m, M)
        _, count = valid_counts(length_ptrs, m, b, S, P, M, HAS_LENGTHS)
        value = tl.where(count > 0, mean, 0.0)
        out_ptr = pick(out_ptrs, m, M) + (b * S * H + h) * D
        store_tile(out_ptr, S - P + slot, H * D, value, inside, D, BLOCK_D)


@triton.jit(do_not_specialize=["B", "H", "P", "rows", "tiles", "slot_tiles"])
def bottleneck_attention_fwd_kernel(
    qkv_ptrs,  # M x [B, S_m, 3, H, D]
    out_ptrs,  # M x [B, S_m, H, D], contiguous
    lse_ptrs,  # M x float32 [B, H, S_m], contiguous
    stats_ptrs,  # M x float32 [2, B, H, S_m], contiguous: maximum and log2 of the sum
    slot_ptr,  # [M, B, P, H, D], contiguous: the slots before the mean, if UPDATE_MEAN
    length_ptrs,  # M x int32 [B], where bit m of HAS_LENGTHS is set
    strides,  # M x (batch, row, which of qkv, head)
    rows,  # M x S_m
    tiles,  # M x tiles of rows per (b, h)
    slot_tiles,  # tiles of slots per (b, h); 0 without UPDATE_MEAN
    B,
    H,
    P,
    qk_scale,  # scale * log2(e)
    M: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    UPDATE_MEAN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """See the head of this file."""
    pid = tl.program_id(0).to(tl.int64)
    qk_scale = tl.cast(qk_scale, tl.float32)
    heads = tl.cast(B, tl.int64) * H
    slot_programs = slot_tiles * heads
    if UPDATE_MEAN and pid < slot_programs:
        head = pid // slot_tiles
        _slots_of_all(
            qkv_ptrs, out_ptrs, lse_ptrs, stats_ptrs, slot_ptr, length_ptrs, strides, rows,
            pid % slot_tiles, head // H, head % H, B, H, P, qk_scale, M, HAS_LENGTHS, D, BLOCK_D,
            BLOCK_M, BLOCK_N, PRECISION,
        )  # fmt: skip
    else:
        m, b, h, tile, S, length, count = locate(
            pid - slot_programs, tiles, length_ptrs, rows, heads, H, P, M, HAS_LENGTHS
        )
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        mine = S - P if UPDATE_MEAN else S  # the slots have programs of their own
        inside = row < mine
        needed = is_needed(tile * BLOCK_M, BLOCK_M, length, count, S, P)
        out, top, log2_sum = _tile_of_rows(
            head_of(qkv_ptrs, strides, 3, b, h, m, M), pick_stride(strides, 1, m, M),
            pick_stride(strides, 2, m, M), row, inside, length, count, S, P, qk_scale, needed,
            D, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION,
        )  # fmt: skip
        out_ptr = pick(out_ptrs, m, M) + (b * S * H + h) * D
        store_tile(out_ptr, row, H * D, out, inside, D, BLOCK_D)
        _store_lse(
            pick(lse_ptrs, m, M), pick(stats_ptrs, m, M), (b * H + h) * S + row, heads * S, top,
            log2_sum, inside,
        )  # fmt: skip


def launch(
    outs: Sequence[Tensor],
    lses: Sequence[Tensor],
    stats: Sequence[Tensor],
    slots: Sequence[Tensor],
    qkv: Sequence[Tensor],
    lengths: Sequence[Tensor | None],
    n_bottlenecks: int,
    update_mean: bool,
    scale: float,
    return_lse: bool,
) -> None:
    """Fill the results of ``bottleneck_attention``, the log-sum-exps in any case.

    ``stats`` are the maximum and the sum of the softmax; ``slots`` holds one tensor, the slots of
    all streams before the shared update, in the order of the launch.
    """
    streams = Streams.of(qkv, lengths)
    batch, _, _, heads, head_dim = qkv[0].shape
    update_mean = update_mean and n_bottlenecks > 0
    tiles = tiles_for("fwd_mean" if update_mean else "fwd", qkv[0])
    own = [s - n_bottlenecks if update_mean else s for s in streams.rows()]
    row_tiles = tuple(triton.cdiv(rows, tiles.block_m) for rows in own)
    slot_tiles = triton.cdiv(n_bottlenecks, tiles.block_m) if update_mean else 0
    programs = (sum(row_tiles) + slot_tiles) * batch * heads
    if not programs:
        return
    with device_of(qkv[0]):
        bottleneck_attention_fwd_kernel[(programs,)](
            tuple(streams.qkv), *(tuple(streams.arrange(kind)) for kind in (outs, lses, stats)),
            slots[0], tuple(streams.lengths), strides_of(streams.qkv), streams.rows(), row_tiles,
            slot_tiles, batch, heads, n_bottlenecks, scale * math.log2(math.e), M=len(qkv),
            HAS_LENGTHS=streams.has_lengths, UPDATE_MEAN=update_mean, D=head_dim,
            BLOCK_D=block_d(head_dim), BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n,
            PRECISION=precision_of(qkv[0].dtype), num_warps=tiles.num_warps,
            num_stages=tiles.num_stages, **OPTIONS,
        )  # fmt: skip
