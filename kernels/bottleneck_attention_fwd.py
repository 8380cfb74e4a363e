"""Forward of bottleneck attention: all streams in one launch; the shared update in another.

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
neighbours share keys in L2. With UPDATE_MEAN the rows of slots go to ``slots``, and a second, small
kernel puts the mean of the present streams, summed in the order of the streams, into all of them.

Walks. Tiles of own tokens without a gap take no masks, and their addresses move by one number. What
is left, the last own tokens and the slots, takes masks: one or two steps, if slots are few.

Invariants.
- Every element of out, slots and lse is written by exactly one program of a kernel; no atomics;
  bitwise repeatable.
- Rows of padding and absent streams get 0 and -inf; their values are never loaded.
- The first tile of keys holds a valid one, so m_i is finite after it, if the inputs are.
- ``qk_scale`` is not negative: the largest ``q k^T`` is then the largest score, and the scale goes
  into the multiply-add before ``exp2``. Of a negative one the launcher moves the sign into q.
- The two parts of lse are kept apart for the backward: at scores of 1e4 their float32 sum has an
  error of 1e-3, and probabilities recomputed from it have one, too.
- Accumulation is in float32; probabilities are rounded to the dtype of v before the second product.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mbt_fast.kernels.launch import (
    OPTIONS,
    Streams,
    block_d,
    device_of,
    numbers,
    precision_of,
    strides_of,
)
from mbt_fast.kernels.table import RowTile, tiles_for
from mbt_fast.kernels.tiles import (
    LN_2,
    head_of,
    is_needed,
    is_valid,
    load_rows,
    load_tile,
    locate,
    pick,
    pick_int,
    pick_stride,
    row_of,
    store_tile,
    valid_counts,
    whole_tiles,
)

SLOT_TILE = RowTile(block_r=1, block_c=512, num_warps=4)  # of the second kernel


@triton.jit
def _step(acc, l_i, m_i, q, k, v, inside, qk_scale, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """One tile of keys of the online softmax; ``inside`` says which of them count, if MASKED."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    if MASKED:
        s = tl.where(inside[None, :], s * qk_scale, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
    else:
        m_new = tl.maximum(m_i, tl.max(s, 1) * qk_scale)
        p = tl.exp2(s * qk_scale - m_new[:, None])  # one multiply-add
    alpha = tl.exp2(m_i - m_new)
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
    return acc, l_i * alpha + tl.sum(p, 1), m_new


@triton.jit
def _attend(
    q, k_ptr, stride, stride_w, length, count, rows, P, qk_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of a tile of queries over ``count > 0`` keys: output, maximum, log2 of the sum."""
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    whole = whole_tiles(length, BLOCK_N, q.dtype)
    offset = tl.cast(0, tl.int64)
    for _ in range(0, whole, BLOCK_N):
        k = load_rows(k_ptr + offset, stride, BLOCK_N, D, BLOCK_D)  # [BLOCK_N, BLOCK_D]
        v = load_rows(k_ptr + offset + stride_w, stride, BLOCK_N, D, BLOCK_D)
        offset += BLOCK_N * stride
        acc, l_i, m_i = _step(acc, l_i, m_i, q, k, v, None, qk_scale, False, PRECISION)
    for start in tl.range(whole, count, BLOCK_N, num_stages=1):
        number = start + tl.arange(0, BLOCK_N)
        row, inside = row_of(number, length, rows, P), number < count
        k = load_tile(k_ptr, row, stride, inside, D, BLOCK_D)
        v = load_tile(k_ptr + stride_w, row, stride, inside, D, BLOCK_D)
        acc, l_i, m_i = _step(acc, l_i, m_i, q, k, v, inside, qk_scale, True, PRECISION)
    return acc / l_i[:, None], m_i, tl.log2(l_i)


@triton.jit
def _tile_of_rows(
    q_ptr, stride_s, stride_w, row, first, length, count, rows, P, qk_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Output and both parts of the lse of some rows; 0, -inf and 0 for rows that are not valid."""
    out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    log2_sum = tl.zeros([BLOCK_M], tl.float32)
    if is_needed(first, BLOCK_M, length, count, rows, P):
        valid = is_valid(row, length, count, rows, P)
        q = load_tile(q_ptr, row, stride_s, valid, D, BLOCK_D)
        out, top, log2_sum = _attend(
            q, q_ptr + stride_w, stride_s, stride_w, length, count, rows, P, qk_scale, D, BLOCK_D,
            BLOCK_M, BLOCK_N, PRECISION,
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


@triton.jit(do_not_specialize=["B", "H", "P"])
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
    B,
    H,
    P,
    qk_scale,  # scale * log2(e), not negative
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
    m, b, h, tile, S, length, count = locate(
        pid, tiles, length_ptrs, rows, heads, H, P, M, HAS_LENGTHS
    )
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < S
    out, top, log2_sum = _tile_of_rows(
        head_of(qkv_ptrs, strides, 3, b, h, m, M), pick_stride(strides, 1, m, M),
        pick_stride(strides, 2, m, M), row, tile * BLOCK_M, length, count, S, P, qk_scale, D,
        BLOCK_D, BLOCK_M, BLOCK_N, PRECISION,
    )  # fmt: skip
    own = S - P if UPDATE_MEAN else S
    out_ptr = pick(out_ptrs, m, M) + (b * S * H + h) * D
    store_tile(out_ptr, row, H * D, out, row < own, D, BLOCK_D)
    if UPDATE_MEAN and (tile + 1) * BLOCK_M > own:
        own_ptr = slot_ptr + ((m * B + b) * P * H + h) * D
        store_tile(own_ptr, row - own, H * D, out, (row >= own) & inside, D, BLOCK_D)
    _store_lse(
        pick(lse_ptrs, m, M), pick(stats_ptrs, m, M), (b * H + h) * S + row, heads * S, top,
        log2_sum, inside,
    )  # fmt: skip


@triton.jit(do_not_specialize=["B", "P", "width"])
def bottleneck_attention_slots_kernel(
    slot_ptr,  # [M, B, P, width], contiguous
    out_ptrs,  # M x [B, S_m, width], contiguous
    length_ptrs,  # M x int32 [B], where bit m of HAS_LENGTHS is set
    rows,  # M x S_m
    B,
    P,
    width,  # H * D
    M: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The mean of the present streams' slots, into all of them: BLOCK_C elements of one example."""
    size = tl.cast(P, tl.int64) * width
    chunks = tl.cdiv(size, BLOCK_C)
    pid = tl.program_id(0).to(tl.int64)
    b = pid // chunks
    element = pid % chunks * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = element < size
    total = tl.zeros([BLOCK_C], tl.float32)
    present = 0
    for m in range(M):
        _, count = valid_counts(length_ptrs, m, b, pick_int(rows, m, M), P, M, HAS_LENGTHS)
        total += tl.load(slot_ptr + (m * B + b) * size + element, mask=inside, other=0.0)
        present += (count > 0).to(tl.int32)
    mean = total / tl.maximum(present, 1).to(tl.float32)
    for m in range(M):
        S = pick_int(rows, m, M)
        _, count = valid_counts(length_ptrs, m, b, S, P, M, HAS_LENGTHS)
        out_ptr = pick(out_ptrs, m, M) + (b * S + S - P) * width
        value = tl.where(count > 0, mean, 0.0).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + element, value, mask=inside)


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
    if scale < 0:
        scale, qkv = -scale, [_with_negative_q(stream) for stream in qkv]
    streams = Streams.of(qkv, lengths)
    batch, _, _, heads, head_dim = qkv[0].shape
    update_mean = update_mean and n_bottlenecks > 0
    tiles = tiles_for("fwd", qkv[0])
    row_tiles = tuple(triton.cdiv(count, tiles.block_m) for count in streams.rows())
    programs = sum(row_tiles) * batch * heads
    if not programs:
        return
    outs, rows = tuple(streams.arrange(outs)), numbers(streams.rows())
    masked = {"M": len(qkv), "HAS_LENGTHS": streams.has_lengths}
    with device_of(qkv[0]):
        bottleneck_attention_fwd_kernel[(programs,)](
            tuple(streams.qkv), outs, *(tuple(streams.arrange(kind)) for kind in (lses, stats)),
            slots[0], tuple(streams.lengths), strides_of(streams.qkv), rows, numbers(row_tiles),
            batch, heads, n_bottlenecks, scale * math.log2(math.e), UPDATE_MEAN=update_mean,
            D=head_dim, BLOCK_D=block_d(head_dim), BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n,
            PRECISION=precision_of(qkv[0].dtype), num_warps=tiles.num_warps,
            num_stages=tiles.num_stages, **masked, **OPTIONS,
        )  # fmt: skip
        if update_mean:
            width = heads * head_dim
            chunks = triton.cdiv(n_bottlenecks * width, SLOT_TILE.block_c)
            bottleneck_attention_slots_kernel[(batch * chunks,)](
                slots[0], outs, tuple(streams.lengths), rows, batch, n_bottlenecks, width,
                BLOCK_C=SLOT_TILE.block_c, num_warps=SLOT_TILE.num_warps, **masked,
                **OPTIONS,
            )  # fmt: skip


def _with_negative_q(stream: Tensor) -> Tensor:
    """A copy with ``-q`` for ``q``, which is exact in every dtype."""
    copy = stream.clone(memory_format=torch.contiguous_format)
    copy[:, :, 0].neg_()
    return copy
