"""Backward of GELU with bias, from the saved input: ``dx``, and dbias in partial sums.

Notation as in the forward, x with its bias; ``dout`` arrives. With u' the derivative of u::

    dx = dout * (cdf + x * cdf * (1 - cdf) * 2 u')        dbias = sum over all rows of dx

A program walks along a chunk, ``step`` tiles of BLOCK_R rows, for BLOCK_C channels. ``column_sums``
adds up the partial sums in the order of the chunks, which depend on the shape alone: no atomics,
bitwise repeatable. dbias is the sum of dx before it is rounded.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mbt_fast.kernels.bias_gelu_fwd import CUBIC, SCALE, check_form, place, tanh_cdf
from mbt_fast.kernels.column_sums import MOST_CHUNKS, sum_columns, tiles_per_chunk
from mbt_fast.kernels.launch import OPTIONS, device_of


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
        dx = dout * (cdf + x * cdf * (1.0 - cdf) * ((1.0 + x * (3 * CUBIC) * x) * SCALE))
        dbias += dx
        tl.store(dx_ptr + row * C + channel, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if HAS_BIAS:
        tl.store(partial_ptr + chunk * C + channel, tl.sum(dbias, 0)[None, :], mask=channel < C)


def launch(
    dxs: Sequence[Tensor],
    dbiases: Sequence[Tensor],
    douts: Sequence[Tensor],
    xs: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    approximate: str,
) -> None:
    """Fill the gradients of each stream and of its bias, empty where there is none."""
    check_form(approximate)
    for call in zip(dxs, dbiases, douts, xs, biases, strict=True):
        _launch_one(*call)


def _launch_one(dx: Tensor, dbias: Tensor, dout: Tensor, x: Tensor, bias: Tensor | None) -> None:
    if not x.numel():
        dbias.zero_()
        return
    tile, rows, blocks = place(x)
    tiles = triton.cdiv(rows, tile.block_r)
    step = tiles_per_chunk(tiles, tile.block_r, triton.cdiv(MOST_CHUNKS, blocks))
    chunks = triton.cdiv(tiles, step)
    partial = x.new_empty(0 if bias is None else chunks, x.shape[-1], dtype=torch.float32)
    with device_of(x):
        bias_gelu_bwd_kernel[(chunks * blocks,)](
            dout.contiguous(), x.contiguous(), x if bias is None else bias.contiguous(), dx,
            partial, rows, step, HAS_BIAS=bias is not None, C=x.shape[-1], BLOCK_R=tile.block_r,
            BLOCK_C=tile.block_c, num_warps=tile.num_warps, **OPTIONS,
        )  # fmt: skip
        if bias is not None:
            sum_columns(partial, [dbias], [chunks])
