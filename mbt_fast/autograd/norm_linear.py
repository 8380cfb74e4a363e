"""LayerNorm and the Linear that reads it, of which only the input is saved."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from mbt_fast.autocast import autocast_dtype
from mbt_fast.autograd.recomputing import Grads, Recomputing, linear_backward


def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """``linear(layer_norm(x, (C,), norm_weight, norm_bias, eps), weight, bias)``, saving ``x``.

    Args:
        x: ``[B, S, C]``.
        norm_weight: ``[C]``.
        norm_bias: ``[C]`` or ``None``.
        eps: Of the norm.
        weight: ``[K, C]``.
        bias: ``[K]`` or ``None``.

    Returns:
        ``[B, S, K]`` in the dtype of ``weight`` (under autocast, its dtype).
    """
    wide = torch.promote_types(x.dtype, norm_weight.dtype)
    return NormLinear.apply(x.to(wide), norm_weight, norm_bias, eps, *cast(weight, bias))


def cast(*parameters: Tensor | None) -> list[Tensor | None]:
    """As autocast would, which does not see into a Function."""
    return [None if p is None else p.to(autocast_dtype(p)) for p in parameters]


class NormLinear(Recomputing):
    """``norm_linear`` in one dtype of the product."""

    @staticmethod
    def forward(
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor | None,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Norm, then product."""
        normed = layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        return linear(normed.to(weight.dtype), weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the input and the parameters."""
        x, norm_weight, norm_bias, ctx.eps, weight, _ = inputs
        ctx.save_for_backward(x, norm_weight, norm_bias, weight)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Grads:
        """Norm again, then both backwards."""
        x, norm_weight, norm_bias, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grads = norm_linear_backward(
            dout, x, norm_weight, norm_bias, ctx.eps, weight, needs[:3] + needs[4:]
        )
        return *grads[:3], None, *grads[3:]


def norm_linear_backward(
    dout: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    weight: Tensor,
    needs: tuple[bool, ...],
) -> Grads:
    """Gradients of ``x``, ``norm_weight``, ``norm_bias``, ``weight`` and ``bias``, where needed."""
    shape, of_norm = x.shape[-1:], needs[:3]
    normed, mean, rstd = torch.native_layer_norm(x, shape, norm_weight, norm_bias, eps)
    dnormed, dweight, dbias = linear_backward(
        dout, normed.to(weight.dtype), weight, (any(of_norm), *needs[3:])
    )
    if dnormed is None:
        return None, None, None, dweight, dbias
    grads = torch.ops.aten.native_layer_norm_backward(
        dnormed.to(x.dtype), x, shape, mean, rstd, norm_weight, norm_bias, of_norm
    )
    return *grads, dweight, dbias
