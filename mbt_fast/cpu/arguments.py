"""Tensors as the C++ kernels take them: addresses, of what was checked to be what they expect."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pointer(name: str, tensor: Tensor | None, dtype: torch.dtype) -> int:
    """The address of a tensor, 0 for none.

    A program that was exported or traced on the CPU may be run elsewhere, and what autograd hands
    over under autocast may have another dtype; neither may reach raw memory.

    Raises:
        ValueError: ``tensor`` is not on the CPU.
        TypeError: ``tensor`` has another dtype.
    """
    if tensor is None:
        return 0
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU for backend 'cpu', got {tensor.device}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {tensor.dtype}")
    return tensor.data_ptr()


def tokens(name: str, tensor: Tensor | None, dtype: torch.dtype) -> tuple[int, int, int]:
    """Address of ``[B, S, C]``, strides of examples and rows; zeros for none."""
    if tensor is None:
        return 0, 0, 0
    return pointer(name, tensor, dtype), tensor.stride(0), tensor.stride(1)


def contiguous(entries: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Marks of examples, such as lengths, where there are any."""
    return [None if entry is None else entry.contiguous() for entry in entries]


def unit_last_stride(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if its last dimension is strided."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def dtype_name(dtype: torch.dtype) -> str:
    """As the kernels name it: ``"float32"``."""
    return str(dtype).removeprefix("torch.")
