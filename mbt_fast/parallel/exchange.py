"""Sums over the ranks of a group, as autograd sees them.

Two gradients fit a sum over ranks. Where each rank goes on with the sum in its own way, as with
slots, the gradient is the sum of what arrives on all ranks. Where all ranks compute the same from
the sum, as with a loss, what arrives is the gradient already.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def sum_for_each(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over the ranks, of which each makes something else; the gradients are summed too.

    All ranks must take part in the backward, so the sum requires a gradient on all of them, also
    where what goes in is frozen.
    """
    if torch.is_grad_enabled() and not values.requires_grad:
        values = values.detach().requires_grad_()
    return _SumForEach.apply(values, group)


def sum_for_all(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over the ranks, of which all compute the same; the gradient needs no exchange."""
    return _SumForAll.apply(values, group)


def _sum(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class _SumForEach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _sum(values, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.group), None


class _SumForAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _sum(values, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
