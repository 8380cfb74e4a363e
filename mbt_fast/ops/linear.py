"""``linear``: a Linear of each stream, all in one call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mbt_fast.ops import stock
from mbt_fast.ops.autocast import autocast, autocast_dtype
from mbt_fast.ops.backends import on_every_backend
from mbt_fast.ops.checks import check_alike, check_tensor
from mbt_fast.ops.dispatch import Call, select
from mbt_fast.ops.operator import Entries, Groups, Implementation, Operator, split

Shape = Sequence[int]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """A Linear: ``x @ weight.T + bias``.

    Equal to::

        torch.nn.functional.linear(x, weight, bias)

    Args:
        x: ``[..., C]``, floating point, any strides.
        weight: ``[K, C]`` in the dtype of ``x``.
        bias: ``[K]`` likewise; ``None`` adds nothing.
        backend: ``"auto"``, ``"cpu"``, ``"sdpa"`` or ``"reference"``, which are both torch's own.

    Returns:
        ``[..., K]`` in the dtype of ``x`` (under autocast, its dtype).

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape or device does not fit; the message names it.
        mbt_fast.dispatch.BackendError: The named backend cannot run this call.

    Numerics:
        Sums in float32 on kernels, rounded once. Their order depends on the shape alone. A gradient
        is computed only where it is needed.

    Example:
        >>> tuple(linear(torch.ones(2, 5, 16), torch.ones(48, 16)).shape)
        (2, 5, 48)
    """
    check(x, weight, bias)
    return products(choose([x], [weight], backend), [x], [weight], [bias])[0]


def check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Check the arguments of ``linear``."""
    check_tensor("x", x)
    if x.ndim == 0:
        raise ValueError("x must have shape [..., C], got a scalar")
    check_tensor("weight", weight)
    check_alike("weight", weight, "x", x)
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"weight must have shape [K, {x.shape[-1]}], the channels of x, "
            f"got {list(weight.shape)}"
        )
    if bias is None:
        return
    check_tensor("bias", bias)
    check_alike("bias", bias, "x", x)
    if tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(
            f"bias must have shape [{weight.shape[0]}], the rows of weight, got {list(bias.shape)}"
        )


def choose(xs: Sequence[Tensor], weights: Sequence[Tensor], backend: str) -> Implementation:
    """Who runs the Linears of all streams; torch, which refuses them, if their dtypes differ."""
    tensors, dtype = (*xs, *weights), autocast_dtype(weights[0])
    if len({t.dtype for t in tensors}) > 1 and any(autocast_dtype(t) != dtype for t in tensors):
        return TORCH
    size = None
    if not torch.compiler.is_compiling():
        size = sum(x.numel() * weight.shape[0] for x, weight in zip(xs, weights, strict=True))
    return BY_BACKEND[select(Call("linear", xs[0].device, dtype, size), backend).name]


def products(
    implementation: Implementation,
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Entries,
) -> list[Tensor]:
    """The Linears of all streams, in the dtype of autocast, which torch's own takes by itself."""
    if implementation is not TORCH and torch.is_autocast_enabled(xs[0].device.type):
        xs, weights, biases = split(autocast([*xs, *weights, *biases]), len(xs), 3)
    products: list[Tensor] = implementation.run(xs, weights, biases)[0]
    return products


def meaning(xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Entries) -> Groups:
    """The Linears by torch's own function."""
    each = zip(xs, weights, biases, strict=True)
    return ([functional.linear(x, weight, bias) for x, weight, bias in each],)


class Linear(Operator):
    """Of lists of rows ``[..., C]``, weights ``[K, C]`` and biases ``[K]``.

    Kept for the backward is what the gradients need that are asked for: rows for those of a weight,
    a weight for those of rows. What is ``None`` there has no use, and its counterpart no gradient.
    """

    name = "linear"
    forward = "Tensor[] xs, Tensor[] weights, Tensor?[] biases"
    backward = "Tensor[] douts, Tensor?[] xs, Tensor?[] weights, bool[] biases"
    lists, inputs, outputs, groups = 3, 3, 1, 1

    def results(self, xs: Sequence[Tensor], weights: Sequence[Tensor], *rest: Any) -> Groups:
        """The products, contiguous."""
        pairs = zip(xs, weights, strict=True)
        return ([x.new_empty((*x.shape[:-1], weight.shape[0])) for x, weight in pairs],)

    def gradients(
        self, douts: Sequence[Tensor], xs: Entries, weights: Entries, biases: Sequence[bool]
    ) -> Groups:
        """Of rows, weights and biases, contiguous; empty where there is none."""
        dxs, dweights, dbiases = [], [], []
        for dout, x, weight, has_bias in zip(douts, xs, weights, biases, strict=True):
            width = dout.shape[-1]
            rows = 0 if weight is None else (*dout.shape[:-1], weight.shape[1])
            dxs.append(dout.new_empty(rows))
            dweights.append(dout.new_empty(0 if x is None else (width, x.shape[-1])))
            dbiases.append(dout.new_empty(width if has_bias else 0))
        return dxs, dweights, dbiases

    def save(self, lists: Groups, results: Groups) -> Groups:
        """Rows, weights and biases, where they serve a gradient."""
        xs, weights, biases = lists
        pairs = list(zip(xs, weights, strict=True))
        return (
            [x if weight.requires_grad else None for x, weight in pairs],
            [weight if x.requires_grad else None for x, weight in pairs],
            [None if b is None or not b.requires_grad else b for b in biases],
        )

    def differentiate(self, bwd: Any, grads: Groups, saved: Groups, *options: Any) -> Groups:
        """Gradients of rows, weights and biases, of the streams from which one arrives."""
        streams = [m for m, dout in enumerate(grads[0]) if dout is not None]
        xs, weights, biases = ([kind[m] for m in streams] for kind in saved)
        has_bias = [bias is not None for bias in biases]
        found = list(bwd([grads[0][m] for m in streams], xs, weights, has_bias))
        asked = (*weights, *xs, *biases)  # what each gradient exists for
        found = [None if kept is None else grad for grad, kept in zip(found, asked, strict=True)]
        of = dict(zip(streams, zip(*split(found, len(streams), 3), strict=True), strict=True))
        each = [of.get(m, (None, None, None)) for m in range(len(grads[0]))]
        return tuple(list(kind) for kind in zip(*each, strict=True))

    def flops(self, xs: Any, weights: Any, *rest: Any, **kwargs: Any) -> int:
        """Two for every element of a weight and row."""
        return sum(2 * _size(x) * weight[0] for x, weight in zip(xs, weights, strict=True))

    def flops_backward(self, douts: Any, xs: Any, weights: Any, *rest: Any, **kwargs: Any) -> int:
        """As many for either gradient."""
        of_rows = (2 * _size(d) * w[1] for d, w in zip(douts, weights, strict=True) if w)
        of_weights = (2 * _size(d) * x[-1] for d, x in zip(douts, xs, strict=True) if x)
        return sum(of_rows) + sum(of_weights)


def _size(shape: Shape) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


TORCH = Implementation(meaning, stock.linear_bwd)
BY_BACKEND = on_every_backend(Linear(), stock=TORCH, reference=TORCH)
