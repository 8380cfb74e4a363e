"""GELU with bias on a kernel backend, differentiable once."""

from typing import Any

import torch
from torch import Tensor

from mbt_fast import ops
from mbt_fast.autograd.refuse import first_derivative, refuse_forward_mode


class BiasGelu(torch.autograd.Function):
    """``gelu(x + bias)``, of which only ``x`` and ``bias`` are kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, approximate: str, backend: str) -> Tensor:
        """Run the forward operator."""
        return ops.bias_gelu_fwd(x, bias, approximate, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the backward recomputes from."""
        x, bias, *ctx.options = inputs
        ctx.save_for_backward(x, bias)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``x`` and ``bias``."""
        x, bias = ctx.saved_tensors
        dx, dbias = bias_gelu_backward(dout, x, bias, *ctx.options)
        return dx, None if bias is None else dbias, None, None


def bias_gelu(x: Tensor, bias: Tensor | None, approximate: str, backend: str) -> Tensor:
    """``reference.bias_gelu`` on a kernel backend, by its name."""
    refuse_forward_mode(backend, (x, bias))
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return BiasGelu.apply(x, bias, approximate, backend)
    return ops.bias_gelu_fwd(x, bias, approximate, backend)


def bias_gelu_backward(
    dout: Tensor, x: Tensor, bias: Tensor | None, approximate: str, backend: str
) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and of ``bias``, if there is one; they refuse to be differentiated."""
    return first_derivative(backend, ops.bias_gelu_bwd, dout, x, bias, approximate, backend)
