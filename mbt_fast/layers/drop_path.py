"""Stochastic depth (drop path): for which examples of a batch a residual branch is left out.

The random numbers are drawn on the CPU, so that the host knows, without a device synchronisation,
what need not be computed. Kept branches are not rescaled, as in the official code.
"""

from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from mbt_fast.ops.checks import is_readable
from mbt_fast.ops.streams import expand


@dataclass(frozen=True)
class Keep:
    """The examples that a branch is added for; without a field, all of them.

    Args:
        index: int64 ``[K]``, the ``K`` examples for which the branch is computed at all.
        mask: bool ``[B]``, where the branch is computed for all and then multiplied by it.
    """

    index: Tensor | None = None
    mask: Tensor | None = None

    @overload
    def take(self, x: Tensor) -> Tensor: ...

    @overload
    def take(self, x: None) -> None: ...

    def take(self, x: Tensor | None) -> Tensor | None:
        """The examples of ``[B, ...]`` for which the branch is computed."""
        return x if x is None or self.index is None else x.index_select(0, self.index)

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """``x`` and, where it is kept, the branch, which has been computed for ``take(x)``."""
        if self.index is not None:
            return x.index_add(0, self.index, branch.to(x.dtype))
        if self.mask is not None:
            branch = branch * expand(self.mask, branch).to(branch.dtype)
        return x + branch


ALL = Keep()


def sample_keep(x: Tensor, drop_rate: float, *, skip: bool) -> Keep:
    """Leave a branch out for each example of ``[B, ...]`` with probability ``drop_rate``.

    Draws ``B`` numbers from the CPU's generator, whether or not the branch is then skipped. While a
    graph is compiled or captured nothing can be decided on the host: the numbers then come from the
    device's generator, and the branch is masked. So it is, too, where ``vmap`` draws numbers that
    differ along its dimension.

    Args:
        x: The stream that the branch belongs to.
        drop_rate: From 0 to 1.
        skip: Compute the branch for the kept examples alone.
    """
    if drop_rate == 0.0:
        return ALL
    host = torch.device("cpu")
    keep = torch.rand(x.shape[0], device=x.device if _recorded(x) else host) >= drop_rate
    if not skip or not is_readable(keep):
        return Keep(mask=_send(keep, x.device))
    index = keep.nonzero()[:, 0]
    return ALL if len(index) == len(keep) else Keep(index=_send(index, x.device))


def _recorded(x: Tensor) -> bool:
    """Whether what runs now is recorded, to be run again later."""
    return torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device; to a GPU from pinned memory, so that nobody waits for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
