"""What autocast would do to a tensor: an operator of our own would otherwise not see it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which an op runs on this tensor. Autocast leaves float64 alone."""
    kind = tensor.device.type  # autocast never is on where torch has none, as on ``meta``
    if tensor.dtype == torch.float64 or not _is_available(kind):
        return tensor.dtype
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def autocast(tensors: Sequence[Any]) -> list[Any]:
    """Tensors on one device, or ``None`` but for the first, in the dtypes in which an op runs."""
    first = tensors[0]  # the CPU is asked for quickly, because short streams wait for this
    kind = "cpu" if first.is_cpu else first.device.type
    if not (kind == "cpu" or _is_available(kind)) or not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [None if tensor is None else tensor.to(autocast_dtype(tensor)) for tensor in tensors]


def _is_available(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# What torch.compiler.assume_constant_result does, which would import torch._dynamo: one second. The
# Dynamo of torch 2.11 cannot trace the function.
_is_available._dynamo_marked_constant = True  # type: ignore[attr-defined]
