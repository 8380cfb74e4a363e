"""Launchers of GELU with bias on the CPU, forward and backward."""

import torch
from torch import Tensor

from mbt_fast import native
from mbt_fast.cpu.arguments import dtype_name, pointer


def bias_gelu_fwd(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """Run the forward.

    Arguments are those of ``mbt_fast.functional.bias_gelu``, checked.

    Returns:
        ``gelu(x + bias)``, contiguous.
    """
    x = x.contiguous()
    out = x.new_empty(x.shape)
    if x.numel():
        wide = None if bias is None else bias.float().contiguous()
        native.module().bias_gelu_fwd(
            _call(x, approximate), pointer("x", x, x.dtype),
            pointer("bias", wide, torch.float32), out.data_ptr(),
        )  # fmt: skip
    return out


def bias_gelu_bwd(
    dout: Tensor, x: Tensor, bias: Tensor | None, approximate: str
) -> tuple[Tensor, Tensor]:
    """Run the backward.

    Args:
        dout: Like ``x``, of any layout.
        x: As in the forward, like all that follow.
        bias: Likewise.
        approximate: Likewise.

    Returns:
        The gradients of ``x``, contiguous, and of ``bias``, empty where there is none.
    """
    x, dout = x.contiguous(), dout.contiguous()
    dx = x.new_empty(x.shape)
    dbias = x.new_zeros(0 if bias is None else x.shape[-1], dtype=torch.float32)
    if x.numel():
        wide = None if bias is None else bias.float().contiguous()
        native.module().bias_gelu_bwd(
            _call(x, approximate), pointer("x", x, x.dtype),
            pointer("bias", wide, torch.float32), pointer("dout", dout, x.dtype), dx.data_ptr(),
            dbias.data_ptr(),
        )  # fmt: skip
    return dx, dbias if bias is None else dbias.to(bias.dtype)


def _call(x: Tensor, approximate: str) -> object:
    return native.module().GeluCall(
        native.instruction_set(),
        dtype_name(x.dtype),
        approximate,
        x.numel(),
        x.shape[-1],
        torch.get_num_threads(),
    )
