"""One step of each walk of the backward: a tile of queries against a tile of keys.

Notation as in ``bottleneck_attention_bwd.py``.
"""

import triton
import triton.language as tl

from mbt_fast.kernels.tiles import LOG2_E


@triton.jit
def p_and_dp(q, dout, top, log2_sum, k, v, scale, PRECISION: tl.constexpr):
    """Probabilities of a tile of queries and keys, and their gradients: [queries, keys]."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E)
    p = tl.exp2(s - top[:, None] - log2_sum[:, None])
    dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
    return p, dp


@triton.jit
def add_dq(
    dq, q, dout, top, log2_sum, delta, k, v, inside, choice, scale,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to dq the share of a tile of keys; ``inside`` says which of them count, if MASKED."""
    p, dp = p_and_dp(q, dout, top, log2_sum, k, v, scale, PRECISION)
    if MASKED:
        p = tl.where(inside[None, :], p, 0.0)
    ds = p * (dp * choice - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit
def load_statistics(top_ptr, delta_ptr, half, ROWS: tl.constexpr):
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
def add_dk_and_dv(
    dk, dv, k, v, q, dout, top, log2_sum, delta, choice, scale, PRECISION: tl.constexpr
):  # fmt: skip
    """Add to dk and dv the shares of a tile of queries; scores are transposed: [keys, queries]."""
    s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2_E)
    p = tl.exp2(s - top[None, :] - log2_sum[None, :])
    dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision=PRECISION)
    dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
    ds = p * (dp * choice - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION), dv
