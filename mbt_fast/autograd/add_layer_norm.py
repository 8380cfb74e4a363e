"""Residual sum, slot mean and LayerNorm on a kernel backend, differentiable once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mbt_fast import ops
from mbt_fast.autograd.refuse import first_derivative, refuse_forward_mode

Optional = Sequence[Tensor | None]


class AddLayerNorm(torch.autograd.Function):
    """All streams at once. Arguments: three options, then ``M`` each of six kinds of tensor.

    The kinds are streams, branches, weights, biases, keep and lengths.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(n_bottlenecks: int, eps: float, backend: str, *tensors: Any) -> tuple[Tensor, ...]:
        """Run the forward operator: ``M`` sums, ``M`` normalised, what the backward needs."""
        return tuple(ops.add_layer_norm_fwd(*in_parts(tensors, 6), n_bottlenecks, eps, backend))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save what was normalised, statistics, weights, ``keep`` and lengths."""
        ctx.n_bottlenecks, _, ctx.backend, *tensors = inputs
        streams, branches, weights, _, keep, lengths = in_parts(tensors, 6)
        sums, _, stats = in_parts(output, 3)
        ctx.has_branch = [branch is not None for branch in branches]
        ctx.has_keep = [kept is not None for kept in keep]
        written = [ctx.n_bottlenecks > 0 or has for has in ctx.has_branch]
        normalised = [s if w else x for s, w, x in zip(sums, written, streams, strict=True)]
        ctx.save_for_backward(*normalised, *stats, *weights, *keep, *lengths)
        unwritten = [s for s, w in zip(sums, written, strict=True) if not w]
        ctx.mark_non_differentiable(*unwritten, *stats)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of streams, branches, weights and biases."""
        dsums, dnormed, _ = in_parts(grads, 3)
        saved = ctx.saved_tensors  # read once: activation checkpointing forbids a second time
        sums = saved[: len(dsums)]
        filled = [
            torch.zeros_like(total) if dout is None else dout
            for total, dout in zip(sums, dnormed, strict=True)
        ]
        tensors = (*dsums, *filled, *saved)
        options = (ctx.n_bottlenecks, ctx.backend)
        results = first_derivative(ctx.backend, _backward, *options, *tensors)
        dx, own, dweights, dbiases = in_parts(results, 4)
        alike = [d if has else None for d, has in zip(dx, ctx.has_branch, strict=True)]
        dbranches = [o if has else d for o, d, has in zip(own, alike, ctx.has_keep, strict=True)]
        return (None, None, None, *dx, *dbranches, *dweights, *dbiases, *[None] * 2 * len(dx))


def add_layer_norm(
    streams: Sequence[Tensor],
    branches: Optional,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    keep: Optional,
    lengths: Optional,
    n_bottlenecks: int,
    eps: float,
    backend: str,
) -> tuple[list[Tensor], list[Tensor]]:
    """``reference.add_layer_norm`` on a kernel backend, by its name."""
    tensors = (*streams, *branches, *weights, *biases, *keep, *lengths)
    refuse_forward_mode(backend, tensors)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        results = AddLayerNorm.apply(n_bottlenecks, eps, backend, *tensors)
    else:  # quicker; and Dynamo cannot trace a Function of any number of tensors without gradients
        results = ops.add_layer_norm_fwd(*in_parts(tensors, 6), n_bottlenecks, eps, backend)
    sums, normed, _ = in_parts(results, 3)
    if n_bottlenecks == 0:
        pairs = zip(streams, branches, sums, strict=True)
        sums = [stream if branch is None else total for stream, branch, total in pairs]
    return sums, normed


def in_parts(tensors: Sequence[Any], count: int) -> list[list[Any]]:
    """``count`` lists of equal length, one after the other."""
    size = len(tensors) // count
    return [list(tensors[first : first + size]) for first in range(0, count * size, size)]


def _backward(n_bottlenecks: int, backend: str, *tensors: Any) -> tuple[Tensor, ...]:
    """The backward operator: ``M`` each of its seven kinds of tensor, then the options."""
    return tuple(ops.add_layer_norm_bwd(*in_parts(tensors, 7), n_bottlenecks, backend))
