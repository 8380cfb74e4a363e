"""What the kernels of the layer share: rows ``[B, S, C]`` of streams, and what marks an example."""

import triton
import triton.language as tl

from mbt_fast.kernels.tiles import load_tile, only_if, pick, pick_int, pick_stride, store_tile


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
def load_sum(
    stream_ptrs, branch_ptrs, keep_ptrs, strides, branch_strides, m, b, row, inside,
    M: tl.constexpr, HAS_BRANCH: tl.constexpr, HAS_KEEP: tl.constexpr, C: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Stream and branch, added up: float32 ``[rows, BLOCK_C]``, zero where masked."""
    x = load_rows(stream_ptrs, strides, m, b, row, inside, M, C, BLOCK_C)
    if HAS_BRANCH != 0:
        added = is_set(HAS_BRANCH, m, M)
        if HAS_KEEP != 0:
            added = added & is_marked(keep_ptrs, HAS_KEEP, m, b, M)
        inside = only_if(inside, added)
        x += load_rows(branch_ptrs, branch_strides, m, b, row, inside, M, C, BLOCK_C)
    return x


@triton.jit
def mean_of_slots(
    stream_ptrs, branch_ptrs, keep_ptrs, length_ptrs, strides, branch_strides, rows, slot, b, P,
    M: tl.constexpr, HAS_BRANCH: tl.constexpr, HAS_KEEP: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean of the sums of BLOCK_R slots over the present streams of example ``b`` (Eq. 9)."""
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    count = tl.cast(0.0, tl.float32)
    for m in tl.static_range(M):
        present = is_marked(length_ptrs, HAS_LENGTHS, m, b, M)
        count += present.to(tl.float32)
        total += load_sum(
            stream_ptrs, branch_ptrs, keep_ptrs, strides, branch_strides, m, b,
            slot + (pick_int(rows, m, M) - P), only_if(slot < P, present), M, HAS_BRANCH, HAS_KEEP,
            C, BLOCK_C,
        )  # fmt: skip
    return total / tl.maximum(count, 1.0)


@triton.jit
def store_branch_gradient(
    dx, dbranch_ptrs, keep_ptrs, m, b, row, inside, S, M: tl.constexpr, HAS_KEEP: tl.constexpr,
    C: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a branch where it is another than ``dx``, that of its stream."""
    if HAS_KEEP != 0:
        kept = tl.where(is_marked(keep_ptrs, HAS_KEEP, m, b, M), dx, 0.0)
        apart = only_if(inside, is_set(HAS_KEEP, m, M))
        store_tile(pick(dbranch_ptrs, m, M) + b * S * C, row, C, kept, apart, C, BLOCK_C)


@triton.jit
def load_channels(ptr, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """A parameter ``[C]`` as float32 ``[1, BLOCK_C]``, zero beyond ``C``."""
    channel = tl.arange(0, BLOCK_C)[None, :]
    return tl.load(ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
