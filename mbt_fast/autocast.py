"""What autocast would do to a tensor: an operator of our own would otherwise not see it."""

import torch
from torch import Tensor


def is_enabled(device: torch.device) -> bool:
    """Whether autocast is on for this device; it never is where torch has none, as on ``meta``."""
    available = torch.amp.is_autocast_available(device.type)
    return available and torch.is_autocast_enabled(device.type)


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which an op runs on this tensor. Autocast leaves float64 alone."""
    if tensor.dtype == torch.float64 or not is_enabled(tensor.device):
        return tensor.dtype
    return torch.get_autocast_dtype(tensor.device.type)
