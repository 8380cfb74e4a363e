"""The MLP of a block, of which one activation is saved: before GELU, or before the norm."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from mbt_fast import dispatch
from mbt_fast.autograd.bias_gelu import bias_gelu, bias_gelu_backward
from mbt_fast.autograd.norm_linear import cast, norm_linear_backward
from mbt_fast.autograd.recomputing import Grads, Recomputing, linear_backward


def gelu_linear(
    preactivation: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    approximate: str,
    backend: str = "auto",
    *,
    first_bias: Tensor | None = None,
) -> Tensor:
    """``linear(gelu(preactivation, approximate=approximate), weight, bias)``, saving its input.

    Args:
        preactivation: ``[B, S, K]``; without the first Linear's bias, if that is given.
        weight: ``[C, K]``.
        bias: ``[C]`` or ``None``.
        approximate: ``"tanh"`` or ``"none"``.
        backend: Of GELU: ``"auto"`` or a name of ``dispatch.BACKENDS``.
        first_bias: ``[K]``, added to ``preactivation`` within GELU.

    Returns:
        ``[B, S, C]`` in the dtype of ``weight`` (under autocast, its dtype).
    """
    return GeluLinear.apply(preactivation, first_bias, *cast(weight, bias), approximate, backend)


def norm_mlp(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    weights: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    approximate: str,
    backend: str = "auto",
) -> Tensor:
    """``gelu_linear`` of ``norm_linear``, saving ``x``: the first product is computed again.

    Args:
        x: ``[B, S, C]``.
        norm_weight: ``[C]``.
        norm_bias: ``[C]`` or ``None``.
        eps: Of the norm.
        weights: ``[K, C]`` and ``[K]`` of the first Linear, ``[C, K]`` and ``[C]`` of the second.
        approximate: ``"tanh"`` or ``"none"``.
        backend: Of GELU: ``"auto"`` or a name of ``dispatch.BACKENDS``.

    Returns:
        ``[B, S, C]`` in the dtype of the weights (under autocast, its dtype).
    """
    wide = torch.promote_types(x.dtype, norm_weight.dtype)
    activation = (approximate, backend)
    return NormMlp.apply(x.to(wide), norm_weight, norm_bias, eps, *cast(*weights), *activation)


class GeluLinear(Recomputing):
    """``gelu_linear`` in one dtype."""

    @staticmethod
    def forward(
        preactivation: Tensor,
        first_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        approximate: str,
        backend: str,
    ) -> Tensor:
        """GELU, then product."""
        return linear(_gelu(preactivation, first_bias, approximate, backend), weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the input, its bias and the weight."""
        preactivation, first_bias, weight, _, *ctx.activation = inputs
        ctx.save_for_backward(preactivation, first_bias, weight)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Grads:
        """GELU again, then both backwards."""
        preactivation, first_bias, weight = ctx.saved_tensors
        of_input, of_bias, *of_linear = ctx.needs_input_grad[:4]
        grads = gelu_linear_backward(
            dout,
            preactivation,
            first_bias,
            weight,
            (of_input or of_bias, *of_linear),
            *ctx.activation,
        )
        return *grads, None, None


def gelu_linear_backward(
    dout: Tensor,
    preactivation: Tensor,
    first_bias: Tensor | None,
    weight: Tensor,
    needs: tuple[bool, ...],
    approximate: str,
    backend: str,
) -> Grads:
    """Gradients of ``preactivation`` and ``first_bias``, ``weight``, ``bias``, where needed."""
    hidden = _gelu(preactivation, first_bias, approximate, backend)
    dhidden, dweight, dbias = linear_backward(dout, hidden, weight, needs)
    if dhidden is None:
        return None, None, dweight, dbias
    dhidden = dhidden.to(preactivation.dtype)  # autocast may be on here and not in the forward
    of_gelu = _gelu_backward(dhidden, preactivation, first_bias, approximate, backend)
    return *of_gelu, dweight, dbias


class NormMlp(Recomputing):
    """``norm_mlp`` in one dtype of the products."""

    @staticmethod
    def forward(
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor | None,
        eps: float,
        weight1: Tensor,
        bias1: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
        approximate: str,
        backend: str,
    ) -> Tensor:
        """Norm, product, GELU, product."""
        hidden = _preactivation(x, norm_weight, norm_bias, eps, weight1, bias1)
        return linear(_gelu(hidden, None, approximate, backend), weight2, bias2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the input and the parameters, but for the last bias."""
        x, norm_weight, norm_bias, ctx.eps, weight1, bias1, weight2, _, *ctx.activation = inputs
        ctx.save_for_backward(x, norm_weight, norm_bias, weight1, bias1, weight2)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Grads:
        """The first half again, then the backwards of both halves."""
        x, norm_weight, norm_bias, weight1, bias1, weight2 = ctx.saved_tensors
        needs = ctx.needs_input_grad
        first, second = (*needs[:3], *needs[4:6]), needs[6:8]
        preactivation = _preactivation(x, norm_weight, norm_bias, ctx.eps, weight1, bias1)
        dpreactivation, _, *of_second = gelu_linear_backward(
            dout, preactivation, None, weight2, (any(first), *second), *ctx.activation
        )
        of_first: Grads = (None,) * 5
        if dpreactivation is not None:
            of_first = norm_linear_backward(
                dpreactivation, x, norm_weight, norm_bias, ctx.eps, weight1, first
            )
        return *of_first[:3], None, *of_first[3:], *of_second, None, None


def _preactivation(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    normed = layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    return linear(normed.to(weight.dtype), weight, bias)


def _gelu(x: Tensor, bias: Tensor | None, approximate: str, backend: str) -> Tensor:
    name = _runner(x, approximate, backend)
    if name == "reference":
        return gelu(_sum(x, bias), approximate=approximate)
    return bias_gelu(x, bias, approximate, name)


def _gelu_backward(
    dout: Tensor, x: Tensor, bias: Tensor | None, approximate: str, backend: str
) -> tuple[Tensor, Tensor | None]:
    """Gradients of ``x``, and of ``bias`` if there is one."""
    name = _runner(x, approximate, backend)
    if name == "reference":
        dx = torch.ops.aten.gelu_backward(dout, _sum(x, bias), approximate=approximate)
        return dx, None if bias is None else dx.flatten(0, -2).sum(dim=0).to(bias.dtype)
    dx, dbias = bias_gelu_backward(dout, x, bias, approximate, name)
    return dx, None if bias is None else dbias


def _sum(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.to(x.dtype)


def _runner(x: Tensor, approximate: str, backend: str) -> str:
    return dispatch.select(dispatch.Call.of_layer(dispatch.GELU[approximate], [x]), backend)
