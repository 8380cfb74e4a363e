"""Forward of GELU with bias, in the tanh approximation: ``out = x * cdf(x)`` of ``x + bias``.

    cdf = (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))        u = sqrt(2 / pi) * (x + 0.044715 x^3)

The second form does not cancel where x is far below zero. A program owns BLOCK_R rows and BLOCK_C
channels. Everything is float32 but what is loaded and stored.
"""

import triton
import triton.language as tl

SCALE = tl.constexpr(2 * 0.7978845608028654)  # 2 sqrt(2 / pi)
CUBIC = tl.constexpr(0.044715)


@triton.jit
def tanh_cdf(x):
    """The distribution function of the approximation."""
    return 1.0 / (1.0 + tl.exp(-SCALE * x * (1.0 + CUBIC * x * x)))


@triton.jit(do_not_specialize=["rows"])
def bias_gelu_fwd_kernel(
    x_ptr,  # [rows, C], contiguous
    bias_ptr,  # [C], if HAS_BIAS
    out_ptr,  # [rows, C], contiguous
    rows,
    HAS_BIAS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """See the head of this file."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(C, BLOCK_C)
    row = (pid // blocks * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    channel = (pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    mask = (row < rows) & (channel < C)
    x = tl.load(x_ptr + row * C + channel, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    out = x * tanh_cdf(x)
    tl.store(out_ptr + row * C + channel, out.to(out_ptr.dtype.element_ty), mask=mask)
