"""Tensors as the CUDA kernels take them: addresses, of what was checked to be what they expect."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

DEVICE = "cuda"  # the tests that emulate a GPU say "cpu"


def pointer(name: str, tensor: Tensor | None, dtype: torch.dtype) -> int:
    """The address of a tensor, 0 for none.

    Raises:
        ValueError: ``tensor`` is not on a GPU.
        TypeError: ``tensor`` has another dtype.
    """
    if tensor is None:
        return 0
    if tensor.device.type != DEVICE:
        raise ValueError(f"{name} must be on a GPU for backend 'cuda', got {tensor.device}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {tensor.dtype}")
    return tensor.data_ptr()


def copy_engine_readable(stream: Tensor) -> Tensor:
    """The stream itself, or a copy where the copy engine cannot read it.

    It wants channels side by side, and an address and strides of a multiple of 16 bytes.
    """
    strides = [
        stride * stream.element_size()
        for size, stride in zip(stream.shape[:-1], stream.stride()[:-1], strict=True)
        if size > 1
    ]
    readable = (
        stream.stride(-1) == 1
        and stream.data_ptr() % 16 == 0
        and all(stride > 0 and stride % 16 == 0 for stride in strides)
    )
    return stream if readable else stream.clone(memory_format=torch.contiguous_format)


def device_of(tensor: Tensor) -> AbstractContextManager:
    """Launch where the tensors are, whichever device is current."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def queue_of(tensor: Tensor) -> int:
    """The CUDA stream that PyTorch uses there."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
