"""Backward of GELU with bias, from the saved input: ``dx``, and dbias in partial sums.

Notation as in the forward, x with its bias; ``dout`` arrives. With u' the derivative of u::

    dx = dout * (cdf + x * cdf * (1 - cdf) * 2 u')        dbias = sum over all rows of dx

A program walks along a chunk, ``step`` tiles of BLOCK_R rows, for BLOCK_C channels. ``column_sums``
adds up the partial sums in the order of the chunks, which depend on the shape alone: no atomics,
bitwise repeatable. dbias is the sum of dx before it is rounded.
"""

import triton
import triton.language as tl

from mbt_fast.kernels.bias_gelu_fwd import CUBIC, SCALE, tanh_cdf


@triton.jit(do_not_specialize=["rows", "step"])
def bias_gelu_bwd_kernel(
    dout_ptr,  # [rows, C], contiguous
    x_ptr,  # [rows, C], contiguous
    bias_ptr,  # [C], if HAS_BIAS
    dx_ptr,  # [rows, C], contiguous
    partial_ptr,  # float32 [chunks, C], if HAS_BIAS
    rows,
    step,  # tiles of a chunk
    HAS_BIAS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """See the head of this file."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(C, BLOCK_C)
    chunk = pid // blocks
    channel = (pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    dbias = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    first = chunk * step * BLOCK_R
    for start in range(first, tl.minimum(first + step * BLOCK_R, rows), BLOCK_R):
        row = (start + tl.arange(0, BLOCK_R))[:, None]
        mask = (row < rows) & (channel < C)
        x = tl.load(x_ptr + row * C + channel, mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            x += bias
        dout = tl.load(dout_ptr + row * C + channel, mask=mask, other=0.0).to(tl.float32)
        cdf = tanh_cdf(x)
        dx = dout * (cdf + x * cdf * (1.0 - cdf) * (SCALE * (1.0 + 3 * CUBIC * x * x)))
        dbias += dx
        tl.store(dx_ptr + row * C + channel, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if HAS_BIAS:
        tl.store(partial_ptr + chunk * C + channel, tl.sum(dbias, 0)[None, :], mask=channel < C)
