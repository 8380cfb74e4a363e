"""Backward of bottleneck attention: packed dqkv of all streams, deterministic, in three launches.

Notation as in the forward; ``dout`` [B, S, H, D], ``dlse`` float32 [B, H, S], ``delta`` float32
[B, H, S]. With p = softmax(s) and dp = dout v^T::

    delta = rowsum(dout * out) - dlse
    dv = p^T dout        ds = p * (dp - delta)        dq = scale * ds k        dk = scale * ds^T q

Launches. (1) ``delta``: a program owns BLOCK_M rows. (2) ``dkdv``: a program owns BLOCK_M keys and
walks along the valid rows as queries in steps of BLOCK_N. (3) ``dq``: a program owns BLOCK_M
queries and walks along the valid keys. (2) and (3) recompute p from the saved maximum and sum::

               (2)  queries ->                       (3)  keys ->
             +-----+-----+---+                     +-----+-----+---+
    BLOCK_M  |     |     |   |  dk, dv    BLOCK_M  |     |     |   |  dq
    keys     +-----+-----+---+            queries  +-----+-----+---+
             BLOCK_N                               BLOCK_N

Invariants.
- Every element of dqkv is written by exactly one program: no atomics, bitwise repeatable.
- Rows of padding and absent streams get 0; their values, and their dout, are never loaded.
- Tiles of own tokens without a gap are loaded without masks, and in walks of their own. In the
  others queries beyond the last have an infinite sum, hence p = 0: they need no mask later. Keys
  beyond the last are zero, but p may be infinite there, so that they do.
- Where there is one key, softmax is constant and its gradient exactly 0, not the rounding of
  dp - delta: both are multiplied by 0 there, which costs nothing inside a multiply-add.
- Where softmax is saturated, dp - delta is the rounding of out and little else. In float32 (1) also
  walks along the valid keys and adds ``sum(p * (dp - delta))`` to delta, from the products of (3):
  two more than the other five. 16-bit inputs go without.
- The shared update is undone before (1): the launcher has put the mean's gradient into dout.
"""

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
    last_dim_contiguous,
    numbers,
    precision_of,
    strides_of,
)
from mbt_fast.kernels.table import tiles_for
from mbt_fast.kernels.tiles import (
    LOG2_E,
    has_choice,
    head_of,
    is_needed,
    is_valid,
    load_rows,
    load_tile,
    locate,
    pick,
    pick_stride,
    row_of,
    store_tile,
    whole_tiles,
)


@triton.jit
def _p_and_dp(q, dout, top, log2_sum, k, v, scale, PRECISION: tl.constexpr):
    """Probabilities of a tile of queries and keys, and their gradients: [queries, keys]."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E)
    p = tl.exp2(s - top[:, None] - log2_sum[:, None])
    dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
    return p, dp


@triton.jit
def _add_dq(
    dq, q, dout, top, log2_sum, delta, k, v, inside, choice, scale,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to dq the share of a tile of keys; ``inside`` says which of them count, if MASKED."""
    p, dp = _p_and_dp(q, dout, top, log2_sum, k, v, scale, PRECISION)
    if MASKED:
        p = tl.where(inside[None, :], p, 0.0)
    ds = p * (dp * choice - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit
def _load_statistics(top_ptr, delta_ptr, half, ROWS: tl.constexpr):
    """Maximum, log2 of the sum and delta of rows that follow one another, in one load.

    One by one they would be loaded in the layout of the scores, 16 words a thread, each by all.
    """
    number = tl.arange(0, 4 * ROWS)
    kind = number // ROWS  # maximum, sum, delta twice
    ptrs = tl.where(kind < 2, top_ptr + kind * half, delta_ptr) + number % ROWS
    both, deltas = tl.load(ptrs).reshape(2, 2, ROWS).permute(2, 1, 0).split()
    top, log2_sum = both.split()
    delta, _ = deltas.split()
    return top, log2_sum, delta


@triton.jit
def _add_dk_and_dv(
    dk, dv, k, v, q, dout, top, log2_sum, delta, choice, scale, PRECISION: tl.constexpr
):  # fmt: skip
    """Add to dk and dv the shares of a tile of queries; scores are transposed: [keys, queries]."""
    s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2_E)
    p = tl.exp2(s - top[None, :] - log2_sum[None, :])
    dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision=PRECISION)
    dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
    ds = p * (dp * choice - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit
def _error_of(
    q_ptr, stride_s, stride_w, row, valid, dout, top, log2_sum, delta, length, count, rows, P,
    scale, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``sum(p * (dp - delta))``: what ``delta = rowsum(dout * out)`` lacks through rounding."""
    error = tl.zeros([BLOCK_M], tl.float32)
    q = load_tile(q_ptr, row, stride_s, valid, D, BLOCK_D)  # [BLOCK_M, BLOCK_D]
    for start in range(0, count, BLOCK_N):
        number = start + tl.arange(0, BLOCK_N)
        key = row_of(number, length, rows, P)
        inside = number < count
        k = load_tile(q_ptr + stride_w, key, stride_s, inside, D, BLOCK_D)  # [BLOCK_N, BLOCK_D]
        v = load_tile(q_ptr + 2 * stride_w, key, stride_s, inside, D, BLOCK_D)
        p, dp = _p_and_dp(q, dout, top, log2_sum, k, v, scale, PRECISION)
        error += tl.sum(tl.where(inside[None, :], p, 0.0) * (dp - delta[:, None]), 1)
    return error


@triton.jit(do_not_specialize=["B", "H", "P"])
def bottleneck_attention_bwd_delta_kernel(
    qkv_ptrs,  # M x [B, S_m, 3, H, D]
    out_ptrs,  # M x [B, S_m, H, D], contiguous
    slot_ptr,  # [M, B, P, H, D], contiguous: out of the slots, if UPDATE_MEAN
    dout_ptrs,  # M x [B, S_m, H, D]
    dlse_ptrs,  # M x float32 [B, H, S_m], contiguous, where bit m of HAS_DLSE is set
    stats_ptrs,  # M x float32 [2, B, H, S_m], contiguous: maximum and log2 of the sum
    delta_ptrs,  # M x float32 [B, H, S_m], contiguous
    length_ptrs,  # M x int32 [B], where bit m of HAS_LENGTHS is set
    strides,  # M x (batch, row, which of qkv, head)
    dout_strides,  # M x (batch, row, head)
    rows,  # M x S_m
    tiles,  # M x tiles of rows per (b, h)
    B,
    H,
    P,
    scale,
    M: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_DLSE: tl.constexpr,
    UPDATE_MEAN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Launch (1): delta of all rows; 0 for rows that are not valid."""
    scale = tl.cast(scale, tl.float32)
    heads = tl.cast(B, tl.int64) * H
    pid = tl.program_id(0).to(tl.int64)
    m, b, h, tile, S, length, count = locate(
        pid, tiles, length_ptrs, rows, heads, H, P, M, HAS_LENGTHS
    )
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = is_valid(row, length, count, S, P)
    dout_ptr = head_of(dout_ptrs, dout_strides, 2, b, h, m, M)
    dout_stride_s = pick_stride(dout_strides, 1, m, M)
    dout = load_tile(dout_ptr, row, dout_stride_s, valid, D, BLOCK_D)
    out_ptr = pick(out_ptrs, m, M) + (b * S * H + h) * D
    if UPDATE_MEAN:
        is_slot = row >= S - P
        out = load_tile(out_ptr, row, H * D, valid & (row < S - P), D, BLOCK_D).to(tl.float32)
        own_ptr = slot_ptr + ((m * B + b) * P * H + h) * D
        out += load_tile(own_ptr, row - (S - P), H * D, valid & is_slot, D, BLOCK_D)
    else:
        out = load_tile(out_ptr, row, H * D, valid, D, BLOCK_D).to(tl.float32)
    delta = tl.sum(dout.to(tl.float32) * out, 1)
    offset = (b * H + h) * S + row
    if dout.dtype == tl.float32 and is_needed(tile * BLOCK_M, BLOCK_M, length, count, S, P):
        top_ptr = pick(stats_ptrs, m, M) + offset
        top = tl.load(top_ptr, mask=valid, other=0.0)
        log2_sum = tl.load(top_ptr + heads * S, mask=valid, other=0.0)
        delta += _error_of(
            head_of(qkv_ptrs, strides, 3, b, h, m, M), pick_stride(strides, 1, m, M),
            pick_stride(strides, 2, m, M), row, valid, dout, top, log2_sum, delta, length, count,
            S, P, scale, D, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION,
        )  # fmt: skip
    delta = tl.where(valid, delta * has_choice(count), 0.0)
    for i in tl.static_range(M):
        if (HAS_DLSE >> i) & 1 == 1:  # known when compiled, unlike the next  # noqa: SIM102
            if m == i:
                delta -= tl.load(dlse_ptrs[i] + offset, mask=valid, other=0.0)
    tl.store(pick(delta_ptrs, m, M) + offset, delta, mask=row < S)


@triton.jit(do_not_specialize=["B", "H", "P"])
def bottleneck_attention_bwd_dkdv_kernel(
    qkv_ptrs,  # M x [B, S_m, 3, H, D]
    dout_ptrs,  # M x [B, S_m, H, D]
    stats_ptrs,  # M x float32 [2, B, H, S_m], contiguous: maximum and log2 of the sum
    delta_ptrs,  # M x float32 [B, H, S_m], contiguous
    dqkv_ptrs,  # M x [B, S_m, 3, H, D], contiguous
    length_ptrs,  # M x int32 [B], where bit m of HAS_LENGTHS is set
    strides,  # M x (batch, row, which of qkv, head)
    dout_strides,  # M x (batch, row, head)
    rows,  # M x S_m
    tiles,  # M x tiles of keys per (b, h)
    B,
    H,
    P,
    scale,
    M: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Launch (2): dk and dv of BLOCK_M keys."""
    scale = tl.cast(scale, tl.float32)
    heads = tl.cast(B, tl.int64) * H
    pid = tl.program_id(0).to(tl.int64)
    m, b, h, tile, S, length, count = locate(
        pid, tiles, length_ptrs, rows, heads, H, P, M, HAS_LENGTHS
    )
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = is_valid(row, length, count, S, P)
    dk = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if is_needed(tile * BLOCK_M, BLOCK_M, length, count, S, P):
        stride_s, stride_w = pick_stride(strides, 1, m, M), pick_stride(strides, 2, m, M)
        q_ptr = head_of(qkv_ptrs, strides, 3, b, h, m, M)
        dout_ptr = head_of(dout_ptrs, dout_strides, 2, b, h, m, M)
        dout_stride_s = pick_stride(dout_strides, 1, m, M)
        choice = has_choice(count)
        top_ptr = pick(stats_ptrs, m, M) + (b * H + h) * S
        delta_ptr = pick(delta_ptrs, m, M) + (b * H + h) * S
        k = load_tile(q_ptr + stride_w, row, stride_s, valid, D, BLOCK_D)  # [BLOCK_M, BLOCK_D]
        v = load_tile(q_ptr + 2 * stride_w, row, stride_s, valid, D, BLOCK_D)
        whole = whole_tiles(length, BLOCK_N, k.dtype)
        q_offset, dout_offset = tl.cast(0, tl.int64), tl.cast(0, tl.int64)
        for start in range(0, whole, BLOCK_N):
            q = load_rows(q_ptr + q_offset, stride_s, BLOCK_N, D, BLOCK_D)  # [BLOCK_N, BLOCK_D]
            dout = load_rows(dout_ptr + dout_offset, dout_stride_s, BLOCK_N, D, BLOCK_D)
            q_offset += BLOCK_N * stride_s
            dout_offset += BLOCK_N * dout_stride_s
            top, log2_sum, delta = _load_statistics(
                top_ptr + start, delta_ptr + start, heads * S, BLOCK_N
            )
            dk, dv = _add_dk_and_dv(
                dk, dv, k, v, q, dout, top, log2_sum, delta, choice, scale, PRECISION
            )
        for start in tl.range(whole, count, BLOCK_N, num_stages=1):
            number = start + tl.arange(0, BLOCK_N)
            query, inside = row_of(number, length, S, P), number < count
            q = load_tile(q_ptr, query, stride_s, inside, D, BLOCK_D)
            dout = load_tile(dout_ptr, query, dout_stride_s, inside, D, BLOCK_D)
            top = tl.load(top_ptr + query, mask=inside, other=0.0)
            log2_sum = tl.load(top_ptr + heads * S + query, mask=inside, other=float("inf"))
            delta = tl.load(delta_ptr + query, mask=inside, other=0.0)
            dk, dv = _add_dk_and_dv(
                dk, dv, k, v, q, dout, top, log2_sum, delta, choice, scale, PRECISION
            )
        dk = tl.where(valid[:, None], dk * scale, 0.0)
        dv = tl.where(valid[:, None], dv, 0.0)
    dk_ptr = pick(dqkv_ptrs, m, M) + (b * S * 3 * H + H + h) * D
    store_tile(dk_ptr, row, 3 * H * D, dk, row < S, D, BLOCK_D)
    store_tile(dk_ptr + H * D, row, 3 * H * D, dv, row < S, D, BLOCK_D)


@triton.jit(do_not_specialize=["B", "H", "P"])
def bottleneck_attention_bwd_dq_kernel(
    qkv_ptrs,  # M x [B, S_m, 3, H, D]
    dout_ptrs,  # M x [B, S_m, H, D]
    stats_ptrs,  # M x float32 [2, B, H, S_m], contiguous: maximum and log2 of the sum
    delta_ptrs,  # M x float32 [B, H, S_m], contiguous
    dqkv_ptrs,  # M x [B, S_m, 3, H, D], contiguous
    length_ptrs,  # M x int32 [B], where bit m of HAS_LENGTHS is set
    strides,  # M x (batch, row, which of qkv, head)
    dout_strides,  # M x (batch, row, head)
    rows,  # M x S_m
    tiles,  # M x tiles of queries per (b, h)
    B,
    H,
    P,
    scale,
    M: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Launch (3): dq of BLOCK_M queries."""
    scale = tl.cast(scale, tl.float32)
    heads = tl.cast(B, tl.int64) * H
    pid = tl.program_id(0).to(tl.int64)
    m, b, h, tile, S, length, count = locate(
        pid, tiles, length_ptrs, rows, heads, H, P, M, HAS_LENGTHS
    )
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = is_valid(row, length, count, S, P)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if is_needed(tile * BLOCK_M, BLOCK_M, length, count, S, P):
        stride_s, stride_w = pick_stride(strides, 1, m, M), pick_stride(strides, 2, m, M)
        q_ptr = head_of(qkv_ptrs, strides, 3, b, h, m, M)
        k_ptr, v_ptr = q_ptr + stride_w, q_ptr + 2 * stride_w
        dout_ptr = head_of(dout_ptrs, dout_strides, 2, b, h, m, M)
        dout_stride_s = pick_stride(dout_strides, 1, m, M)
        choice = has_choice(count)
        place = (b * H + h) * S + row
        q = load_tile(q_ptr, row, stride_s, valid, D, BLOCK_D)  # [BLOCK_M, BLOCK_D]
        dout = load_tile(dout_ptr, row, dout_stride_s, valid, D, BLOCK_D)
        top_ptr = pick(stats_ptrs, m, M) + place
        top = tl.load(top_ptr, mask=valid, other=0.0)
        log2_sum = tl.load(top_ptr + heads * S, mask=valid, other=0.0)
        delta = tl.load(pick(delta_ptrs, m, M) + place, mask=valid, other=0.0)
        whole = whole_tiles(length, BLOCK_N, q.dtype)
        offset = tl.cast(0, tl.int64)
        for _ in range(0, whole, BLOCK_N):
            k = load_rows(k_ptr + offset, stride_s, BLOCK_N, D, BLOCK_D)  # [BLOCK_N, BLOCK_D]
            v = load_rows(v_ptr + offset, stride_s, BLOCK_N, D, BLOCK_D)
            offset += BLOCK_N * stride_s
            dq = _add_dq(
                dq, q, dout, top, log2_sum, delta, k, v, None, choice, scale, False, PRECISION
            )
        for start in tl.range(whole, count, BLOCK_N, num_stages=1):
            number = start + tl.arange(0, BLOCK_N)
            key, inside = row_of(number, length, S, P), number < count
            k = load_tile(k_ptr, key, stride_s, inside, D, BLOCK_D)
            v = load_tile(v_ptr, key, stride_s, inside, D, BLOCK_D)
            dq = _add_dq(
                dq, q, dout, top, log2_sum, delta, k, v, inside, choice, scale, True, PRECISION
            )
        dq = tl.where(valid[:, None], dq * scale, 0.0)
    dq_ptr = pick(dqkv_ptrs, m, M) + (b * S * 3 * H + h) * D
    store_tile(dq_ptr, row, 3 * H * D, dq, row < S, D, BLOCK_D)


def launch(
    dqkv: Sequence[Tensor],
    douts: Sequence[Tensor],
    dlses: Sequence[Tensor | None],
    outs: Sequence[Tensor],
    stats: Sequence[Tensor],
    slots: Sequence[Tensor],
    qkv: Sequence[Tensor],
    lengths: Sequence[Tensor | None],
    n_bottlenecks: int,
    update_mean: bool,
    scale: float,
) -> None:
    """Fill the packed gradients of ``bottleneck_attention``, contiguous."""
    streams = Streams.of(qkv, lengths)
    batch, _, _, heads, head_dim = qkv[0].shape
    update_mean = update_mean and n_bottlenecks > 0
    if update_mean:
        douts = _through_the_mean(douts, lengths, n_bottlenecks)
    if not batch * heads * sum(streams.rows()):
        return
    grads = tuple(last_dim_contiguous(dout) for dout in streams.arrange(douts))
    stats = streams.arrange(stats)
    deltas = tuple(entry.new_empty(entry.shape[1:]) for entry in stats)
    shared = {
        "M": len(qkv),
        "HAS_LENGTHS": streams.has_lengths,
        "D": head_dim,
        "BLOCK_D": block_d(head_dim),
        "PRECISION": precision_of(qkv[0].dtype),
    }

    def place(block: int) -> tuple[tuple[int], tuple[object, ...]]:
        """The grid for tiles of ``block`` rows, and the sizes that every kernel takes."""
        tiles = tuple(triton.cdiv(count, block) for count in streams.rows())
        sizes = (numbers(streams.rows()), numbers(tiles), batch, heads, n_bottlenecks)
        return (sum(tiles) * batch * heads,), sizes

    with device_of(qkv[0]):
        tiles = tiles_for("delta", qkv[0])
        grid, sizes = place(tiles.block_m)
        dlse = [None if d is None else d.contiguous() for d in streams.arrange(dlses)]
        bottleneck_attention_bwd_delta_kernel[grid](
            tuple(streams.qkv), tuple(streams.arrange(outs)), slots[0], grads,
            tuple(deltas[0] if d is None else d for d in dlse), tuple(stats), deltas,
            tuple(streams.lengths), strides_of(streams.qkv), strides_of(grads), *sizes, scale,
            HAS_DLSE=sum(1 << m for m, d in enumerate(dlse) if d is not None),
            UPDATE_MEAN=update_mean, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages, **OPTIONS, **shared,
        )  # fmt: skip
        for kernel, name in (
            (bottleneck_attention_bwd_dkdv_kernel, "dkdv"),
            (bottleneck_attention_bwd_dq_kernel, "dq"),
        ):
            tiles = tiles_for(name, qkv[0])
            grid, sizes = place(tiles.block_m)
            kernel[grid](
                tuple(streams.qkv), grads, tuple(stats), deltas, tuple(streams.arrange(dqkv)),
                tuple(streams.lengths), strides_of(streams.qkv), strides_of(grads), *sizes, scale,
                BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, num_warps=tiles.num_warps,
                num_stages=tiles.num_stages, **OPTIONS, **shared,
            )  # fmt: skip


def _through_the_mean(
    douts: Sequence[Tensor], lengths: Sequence[Tensor | None], n_bottlenecks: int
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
