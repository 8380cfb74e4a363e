"""Launchers of GELU with bias on the CPU, forward and backward."""

import torch
from torch import Tensor

from mbt_fast import native


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
            _call(x, approximate), x.data_ptr(), _pointer(wide), out.data_ptr()
        )
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
            _call(x, approximate), x.data_ptr(), _pointer(wide), dout.data_ptr(), dx.data_ptr(),
            dbias.data_ptr(),
        )  # fmt: skip
    return dx, dbias if bias is None else dbias.to(bias.dtype)


def _call(x: Tensor, approximate: str) -> object:
    return native.module().GeluCall(
        native.instruction_set(),
        str(x.dtype).removeprefix("torch."),
        approximate,
        x.numel(),
        x.shape[-1],
        torch.get_num_threads(),
    )


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
