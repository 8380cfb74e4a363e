"""Sums of partial sums: the second stage of every gradient that is a sum over rows.

The order depends on the number of partial sums alone, so that the result is bitwise repeatable.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mbt_fast.kernels.launch import OPTIONS, numbers
from mbt_fast.kernels.table import RowTile
from mbt_fast.kernels.tiles import pick, pick_int

SUM_TILE = RowTile(block_r=32, block_c=32, num_warps=4)
MOST_CHUNKS = 1024  # of the first stage: enough programs for any GPU
LEAST_ROWS = 8  # of a chunk: its partial sums cost less than an eighth of what it reads


@triton.jit
def column_sums_kernel(
    partial_ptr,  # float32 [rows, C], contiguous
    out_ptrs,  # K x [C]
    firsts,  # K x first row
    counts,  # K x number of rows, which are added up in steps of BLOCK_R
    K: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A program owns BLOCK_C columns of one sum."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(C, BLOCK_C)
    k = pid // blocks
    count = pick_int(counts, k, K)
    channel = (pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    first_ptr = partial_ptr + pick_int(firsts, k, K) * C + channel
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(0, count, BLOCK_R):
        row = (start + tl.arange(0, BLOCK_R))[:, None]
        total += tl.load(first_ptr + row * C, mask=(row < count) & (channel < C), other=0.0)
    out_ptr = pick(out_ptrs, k, K)
    result = tl.sum(total, 0)[None, :].to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + channel, result, mask=channel < C)


def sum_columns(partial: Tensor, outs: Sequence[Tensor], counts: Sequence[int]) -> None:
    """Fill each of ``outs`` with the sum of as many rows of ``partial`` as ``counts`` says.

    Args:
        partial: float32 ``[sum of counts, C]``.
        outs: ``[C]`` each, of one dtype.
        counts: Rows of each sum, one sum after the other.
    """
    channels, tile = partial.shape[-1], SUM_TILE
    firsts = [sum(counts[:k]) for k in range(len(counts))]
    column_sums_kernel[(len(outs) * triton.cdiv(channels, tile.block_c),)](
        partial, tuple(outs), numbers(firsts), numbers(counts), K=len(outs), C=channels,
        BLOCK_R=tile.block_r, BLOCK_C=tile.block_c, num_warps=tile.num_warps, **OPTIONS,
    )  # fmt: skip


def tiles_per_chunk(tiles: int, block_r: int, most_chunks: int = MOST_CHUNKS) -> int:
    """How many tiles of ``block_r`` rows the first stage adds up in one chunk."""
    return max(triton.cdiv(tiles, most_chunks), triton.cdiv(LEAST_ROWS, block_r))
