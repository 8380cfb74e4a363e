"""Norms and means of gradients."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mbt_fast.parallel.data_parallel import whole


def clip(parameters: Iterable[nn.Parameter], norm: float | None) -> Tensor:
    """Scale gradients down to a joint norm; without one, leave them.

    Of sharded gradients it is the norm of all shares, and all ranks must call this.

    Returns:
        Their norm before that, a scalar on their device.
    """
    if norm is not None:
        return whole(nn.utils.clip_grad_norm_(parameters, norm))
    return whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


class MeanGradient:
    """The mean of the gradients of several groups of clips, each of which had its own clipping.

    Args:
        parameters: Whose gradients are averaged.
        groups: Number of groups.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], groups: int) -> None:
        """Begin without any."""
        self._parameters = list(parameters)
        self._groups = groups
        self._sums: dict[nn.Parameter, Tensor] = {}

    def add(self) -> None:
        """Take the gradients of a group away from the parameters."""
        if self._groups == 1:
            return
        for parameter in self._parameters:
            if parameter.grad is not None:
                part = parameter.grad / self._groups
                known = self._sums.get(parameter)
                self._sums[parameter] = part if known is None else known.add_(part)
                parameter.grad = None

    @torch.no_grad()
    def put(self) -> None:
        """Give the parameters the mean."""
        if self._groups == 1:
            return
        for parameter in self._parameters:
            parameter.grad = self._sums.get(parameter)
