"""What the kernels of the layer share: rows ``[B, S, C]`` of streams, and what marks an example."""

import triton
import triton.language as tl

from mbt_fast.kernels.tiles import load_tile, pick, pick_stride


@triton.jit
def is_set(bits: tl.constexpr, m, M: tl.constexpr):
    """Bit ``m``, known at run time only, of a constant."""
    chosen = tl.cast(bits & 1, tl.int32)
    for i in tl.static_range(1, M):
        chosen = tl.where(m == i, (bits >> i) & 1, chosen)
    return chosen == 1


@triton.jit
def is_marked(ptrs, bits: tl.constexpr, m, b, M: tl.constexpr):
    """Whether entry ``b`` of the ``m``-th array is positive; yes where bit ``m`` is not set."""
    return tl.load(pick(ptrs, m, M) + b, mask=is_set(bits, m, M), other=1) > 0


@triton.jit
def load_rows(
    ptrs, strides, m, b, row, inside, M: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Rows of example ``b`` of stream ``m``: float32 ``[rows, BLOCK_C]``, zero where masked."""
    base = pick(ptrs, m, M) + b * pick_stride(strides, 0, m, M)
    stride = pick_stride(strides, 1, m, M)
    return load_tile(base, row, stride, inside, C, BLOCK_C).to(tl.float32)


@triton.jit
def load_channels(ptr, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """A parameter ``[C]`` as float32 ``[1, BLOCK_C]``, zero beyond ``C``."""
    channel = tl.arange(0, BLOCK_C)[None, :]
    return tl.load(ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
