"""Residual sum and slot mean on a kernel backend, differentiable once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mbt_fast import ops
from mbt_fast.autograd.add_layer_norm import Optional, in_parts
from mbt_fast.autograd.refuse import first_derivative, refuse_forward_mode


class ResidualAdd(torch.autograd.Function):
    """All streams at once. Arguments: two options, then ``M`` each of four kinds of tensor.

    The kinds are streams, branches, keep and lengths.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(n_bottlenecks: int, backend: str, *tensors: Any) -> tuple[Tensor, ...]:
        """Run the forward operator: ``M`` sums."""
        return tuple(ops.residual_add_fwd(*in_parts(tensors, 4), n_bottlenecks, backend))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save ``keep`` and lengths."""
        ctx.n_bottlenecks, ctx.backend, *tensors = inputs
        _, _, keep, lengths = in_parts(tensors, 4)
        ctx.save_for_backward(*keep, *lengths)

    @staticmethod
    def backward(ctx: Any, *dsums: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of streams and branches; what arrives where nothing changes it."""
        keep, lengths = in_parts(ctx.saved_tensors, 2)
        dx = dbranches = list(dsums)
        has_keep = [kept is not None for kept in keep]
        if ctx.n_bottlenecks or any(has_keep):
            arguments = (ctx.n_bottlenecks, ctx.backend, *dsums, *keep, *lengths)
            results = first_derivative(ctx.backend, _backward, *arguments)
            written, own = in_parts(results, 2)
            dx = written if ctx.n_bottlenecks else dx
            dbranches = [o if has else d for o, d, has in zip(own, dx, has_keep, strict=True)]
        return None, None, *dx, *dbranches, *[None] * 2 * len(dx)


def residual_add(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    keep: Optional,
    lengths: Optional,
    n_bottlenecks: int,
    backend: str,
) -> list[Tensor]:
    """``reference.residual_add`` on a kernel backend, by its name."""
    tensors = (*streams, *branches, *keep, *lengths)
    refuse_forward_mode(backend, tensors)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*streams, *branches)):
        return list(ResidualAdd.apply(n_bottlenecks, backend, *tensors))
    return ops.residual_add_fwd(streams, branches, keep, lengths, n_bottlenecks, backend)


def _backward(n_bottlenecks: int, backend: str, *tensors: Any) -> tuple[Tensor, ...]:
    """The backward operator: ``M`` each of its three kinds of tensor, then the options."""
    return tuple(ops.residual_add_bwd(*in_parts(tensors, 3), n_bottlenecks, backend))
