"""Forward of GELU with bias, in the tanh approximation: ``out = x * cdf(x)`` of ``x + bias``.

    cdf = (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))        u = sqrt(2 / pi) * (x + 0.044715 x^3)

The second form does not cancel where x is far below zero. A program owns BLOCK_R rows and BLOCK_C
channels. Everything is float32 but what is loaded and stored.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mbt_fast.kernels.launch import OPTIONS, device_of
from mbt_fast.kernels.table import GELU_CHANNELS, RowTile, row_tile

# Constants stand to the right of tensors: on the left the interpreter of Triton 3.8 refuses them.
SCALE = tl.constexpr(2 * 0.7978845608028654)  # 2 sqrt(2 / pi)
CUBIC = tl.constexpr(0.044715)


@triton.jit
def tanh_cdf(x):
    """The distribution function of the approximation."""
    return 1.0 / (1.0 + tl.exp(x * -SCALE * (1.0 + x * CUBIC * x)))


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


def launch(
    outs: Sequence[Tensor],
    xs: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    approximate: str,
) -> None:
    """Fill ``gelu(x + bias)`` of each stream; ``approximate`` must be ``"tanh"``."""
    check_form(approximate)
    for out, x, bias in zip(outs, xs, biases, strict=True):
        if x.numel():
            tile, rows, blocks = place(x)
            with device_of(x):
                bias_gelu_fwd_kernel[(triton.cdiv(rows, tile.block_r) * blocks,)](
                    x.contiguous(), x if bias is None else bias.contiguous(), out, rows,
                    HAS_BIAS=bias is not None, C=x.shape[-1], BLOCK_R=tile.block_r,
                    BLOCK_C=tile.block_c, num_warps=tile.num_warps, **OPTIONS,
                )  # fmt: skip


def check_form(approximate: str) -> None:
    """Only the tanh form is there, the official one."""
    if approximate != "tanh":
        raise ValueError(f"approximate must be 'tanh' for backend 'triton', got {approximate!r}")


def place(x: Tensor) -> tuple[RowTile, int, int]:
    """The tile of a program, rows of ``x``, and tiles side by side that cover its channels."""
    channels = x.shape[-1]
    tile = row_tile(min(channels, GELU_CHANNELS))
    return tile, x.numel() // channels, triton.cdiv(channels, tile.block_c)
