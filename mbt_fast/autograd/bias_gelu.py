"""GELU with bias on a kernel backend, differentiable once."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from mbt_fast import ops
from mbt_fast.autograd.refuse import refuse_forward_mode, refuse_second_derivative


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


class BiasGeluBwd(torch.autograd.Function):
    """The first derivative of ``BiasGelu``; it has none of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        dout: Tensor, x: Tensor, bias: Tensor | None, approximate: str, backend: str
    ) -> tuple[Tensor, Tensor]:
        """Run the backward operator."""
        return ops.bias_gelu_bwd(dout, x, bias, approximate, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the name of the backend, for the refusal."""
        ctx.backend = inputs[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        """Refuse, and say who can."""
        refuse_second_derivative(ctx.backend)


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
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return BiasGeluBwd.apply(dout, x, bias, approximate, backend)
    return ops.bias_gelu_bwd(dout, x, bias, approximate, backend)
