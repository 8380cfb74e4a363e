"""Launchers of GELU with bias: forward and backward."""

import torch
import triton
from torch import Tensor

from mbt_fast.kernels.bias_gelu_bwd import bias_gelu_bwd_kernel
from mbt_fast.kernels.bias_gelu_fwd import bias_gelu_fwd_kernel
from mbt_fast.kernels.column_sums import MOST_CHUNKS, sum_columns, tiles_per_chunk
from mbt_fast.kernels.launch import device_of
from mbt_fast.kernels.table import GELU_CHANNELS, RowTile, row_tile


def bias_gelu_fwd(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """Launch the forward.

    Arguments are those of ``mbt_fast.functional.bias_gelu``, checked; ``approximate`` is
    ``"tanh"``.

    Returns:
        ``gelu(x + bias)``, contiguous.
    """
    _check(approximate)
    x = x.contiguous()
    out = x.new_empty(x.shape)
    if x.numel():
        tile, rows, blocks = _place(x)
        with device_of(x):
            bias_gelu_fwd_kernel[(triton.cdiv(rows, tile.block_r) * blocks,)](
                x, x if bias is None else bias.contiguous(), out, rows, HAS_BIAS=bias is not None,
                C=x.shape[-1], BLOCK_R=tile.block_r, BLOCK_C=tile.block_c,
                num_warps=tile.num_warps,
            )  # fmt: skip
    return out


def bias_gelu_bwd(
    dout: Tensor, x: Tensor, bias: Tensor | None, approximate: str
) -> tuple[Tensor, Tensor]:
    """Launch the backward.

    Args:
        dout: Like ``x``, of any layout.
        x: As in the forward, like all that follow.
        bias: Likewise.
        approximate: Likewise.

    Returns:
        The gradients of ``x``, contiguous, and of ``bias``, empty where there is none.
    """
    _check(approximate)
    x, dout = x.contiguous(), dout.contiguous()
    dx = x.new_empty(x.shape)
    dbias = x.new_empty(0, dtype=torch.float32) if bias is None else bias.new_empty(bias.shape)
    if not x.numel():
        return dx, dbias.zero_()
    tile, rows, blocks = _place(x)
    tiles = triton.cdiv(rows, tile.block_r)
    step = tiles_per_chunk(tiles, tile.block_r, triton.cdiv(MOST_CHUNKS, blocks))
    chunks = triton.cdiv(tiles, step)
    partial = x.new_empty(0 if bias is None else chunks, x.shape[-1], dtype=torch.float32)
    with device_of(x):
        bias_gelu_bwd_kernel[(chunks * blocks,)](
            dout, x, x if bias is None else bias.contiguous(), dx, partial, rows, step,
            HAS_BIAS=bias is not None, C=x.shape[-1], BLOCK_R=tile.block_r, BLOCK_C=tile.block_c,
            num_warps=tile.num_warps,
        )  # fmt: skip
        if bias is not None:
            sum_columns(partial, [dbias], [chunks])
    return dx, dbias


def _check(approximate: str) -> None:
    if approximate != "tanh":
        raise ValueError(f"approximate must be 'tanh' for backend 'triton', got {approximate!r}")


def _place(x: Tensor) -> tuple[RowTile, int, int]:
    """The tile of a program, rows of ``x``, and tiles side by side that cover its channels."""
    channels = x.shape[-1]
    tile = row_tile(min(channels, GELU_CHANNELS))
    return tile, x.numel() // channels, triton.cdiv(channels, tile.block_c)
