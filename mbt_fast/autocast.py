"""What autocast would do to a tensor: an operator of our own would otherwise not see it."""

import torch
from torch import Tensor


def is_enabled(device: torch.device) -> bool:
    """Whether autocast is on for this device; it never is where torch has none, as on ``meta``."""
    return _is_available(device.type) and torch.is_autocast_enabled(device.type)


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which an op runs on this tensor. Autocast leaves float64 alone."""
    if tensor.dtype == torch.float64 or not is_enabled(tensor.device):
        return tensor.dtype
    return torch.get_autocast_dtype(tensor.device.type)


def _is_available(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# What torch.compiler.assume_constant_result does, which would import torch._dynamo: one second. The
# Dynamo of torch 2.11 cannot trace the function.
_is_available._dynamo_marked_constant = True  # type: ignore[attr-defined]
