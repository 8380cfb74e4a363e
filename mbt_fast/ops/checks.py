"""Checks of what a call means, made once, before a backend is chosen.

A message reads: *name* must *requirement*, got *value*. Types and dtypes raise ``TypeError``;
shapes, devices and values ``ValueError``. Only metadata is read, but for lengths on the CPU.
"""

import sys
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from mbt_fast.ops.autocast import autocast_dtype

MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 128
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_streams(
    streams: Sequence[Tensor], n_bottlenecks: int, lengths: Sequence[Tensor | None] | None
) -> list[Tensor | None]:
    """Check streams ``[B, S_m, C]``, their slots and lengths; return one length per stream."""
    check_sequence("streams", streams)
    for index, stream in enumerate(streams):
        name = f"streams[{index}]"
        check_tensor(name, stream)
        check_alike(name, stream, "streams[0]", streams[0])
        expected = (streams[0].shape[0], *stream.shape[1:2], *streams[0].shape[2:])
        if stream.ndim != 3 or tuple(stream.shape) != expected:
            raise ValueError(
                f"{name} must have shape [B, S, C] with B and C of streams[0], "
                f"got {list(stream.shape)}"
            )
    check_n_bottlenecks("streams", n_bottlenecks, streams)
    if lengths is None:
        return [None] * len(streams)
    return check_lengths(lengths, "streams", streams, n_bottlenecks)


def check_same_dtype(name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    """Two streams, or parameters, of one dtype."""
    if tensor.dtype != first.dtype:
        raise TypeError(
            f"{name} must have dtype {first.dtype} like {first_name}, got {tensor.dtype}"
        )


def check_branch(name: str, branch: Any, stream_name: str, stream: Tensor) -> None:
    """A residual branch, or ``None``, like its stream."""
    if branch is None:
        return
    check_tensor(name, branch)
    check_alike(name, branch, stream_name, stream)
    if branch.shape != stream.shape:
        raise ValueError(
            f"{name} must have shape {list(stream.shape)} like {stream_name}, "
            f"got {list(branch.shape)}"
        )


def check_keep(name: str, keep: Any, branch_name: str, branch: Tensor | None) -> None:
    """One truth value per example of a branch."""
    if keep is None:
        return
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor or None, got {kind(keep)}")
    if branch is None:
        raise ValueError(f"{name} must be None like {branch_name}, got {kind(keep)}")
    if tuple(keep.shape) != (branch.shape[0],):
        raise ValueError(f"{name} must have shape [{branch.shape[0]}], got {list(keep.shape)}")
    if keep.device != branch.device:
        raise ValueError(f"{name} must be on {branch.device} like {branch_name}, got {keep.device}")


def check_parameter(name: str, parameter: Any, like_name: str, like: Tensor) -> None:
    """One value per channel, in the dtype of the rows or in float32."""
    if not isinstance(parameter, Tensor):
        raise TypeError(f"{name} must be a tensor, got {kind(parameter)}")
    if parameter.dtype not in {like.dtype, torch.promote_types(like.dtype, torch.float32)}:
        raise TypeError(
            f"{name} must be {like.dtype} like {like_name}, or float32 for 16-bit rows, "
            f"got {kind(parameter)}"
        )
    if tuple(parameter.shape) != (like.shape[-1],):
        raise ValueError(
            f"{name} must have shape [{like.shape[-1]}], the channels of {like_name}, "
            f"got {list(parameter.shape)}"
        )
    if parameter.device != like.device:
        raise ValueError(
            f"{name} must be on {like.device} like {like_name}, got {parameter.device}"
        )


def check_per_stream(name: str, entries: Any, streams: Sequence[Tensor]) -> None:
    """A sequence with an entry per stream."""
    if isinstance(entries, Tensor) or not isinstance(entries, Sequence):
        raise TypeError(f"{name} must be a sequence with an entry per stream, got {kind(entries)}")
    if len(entries) != len(streams):
        raise ValueError(
            f"{name} must have {len(streams)} entries like streams, got {len(entries)}"
        )


def check_sequence(name: str, tensors: Sequence[Tensor]) -> None:
    """A sequence of tensors, not empty."""
    usual = isinstance(tensors, (list, tuple))  # asked first, because ``Sequence`` takes its time
    if not usual and (isinstance(tensors, Tensor) or not isinstance(tensors, Sequence)):
        raise TypeError(
            f"{name} must be a sequence of tensors, one per stream, got {kind(tensors)}"
        )
    if not tensors:
        raise ValueError(f"{name} must hold at least one stream, got none")


def check_tensor(name: str, tensor: Any) -> None:
    """A tensor of a float dtype."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {kind(tensor)}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {kind(tensor)}")


def check_alike(name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    """The same device, and the same dtype after autocast, which leaves float64 alone."""
    if tensor.dtype != first.dtype and autocast_dtype(tensor) != autocast_dtype(first):
        raise TypeError(
            f"{name} must have dtype {first.dtype} like {first_name}, got {tensor.dtype}"
        )
    if tensor.device != first.device:
        raise ValueError(f"{name} must be on {first.device} like {first_name}, got {tensor.device}")


def check_n_bottlenecks(name: str, n_bottlenecks: int, streams: Sequence[Tensor]) -> None:
    """An integer from 0 to the rows of every stream."""
    plain = type(n_bottlenecks) is int  # asked first, because ``Integral`` takes its time
    if not plain and (
        isinstance(n_bottlenecks, bool) or not isinstance(n_bottlenecks, (Integral, torch.SymInt))
    ):
        raise TypeError(f"n_bottlenecks must be an integer, got {n_bottlenecks!r}")
    if n_bottlenecks < 0:
        raise ValueError(f"n_bottlenecks must be at least 0, got {n_bottlenecks}")
    for index, stream in enumerate(streams):
        if stream.shape[1] < n_bottlenecks:
            raise ValueError(
                f"{name}[{index}] must have at least n_bottlenecks = {n_bottlenecks} rows, "
                f"got {stream.shape[1]}"
            )


def check_scale(scale: float | None) -> None:
    """A number or ``None``."""
    if scale is None:
        return
    if isinstance(scale, bool) or not isinstance(scale, (Real, torch.SymFloat)):
        raise TypeError(f"scale must be a number or None, got {kind(scale)}")


def check_lengths(
    lengths: Sequence[Tensor | None],
    name: str,
    streams: Sequence[Tensor],
    n_bottlenecks: int,
) -> list[Tensor | None]:
    """One entry per stream; see ``check_length``."""
    if isinstance(lengths, Tensor) or not isinstance(lengths, Sequence):
        raise TypeError(f"lengths must be a sequence with an entry per stream, got {kind(lengths)}")
    if len(lengths) != len(streams):
        raise ValueError(
            f"lengths must have {len(streams)} entries like {name}, got {len(lengths)}"
        )
    return [
        check_length(f"lengths[{index}]", length, stream, stream.shape[1] - n_bottlenecks)
        for index, (length, stream) in enumerate(zip(lengths, streams, strict=True))
    ]


def check_length(name: str, length: Tensor | None, stream: Tensor, most: int) -> Tensor | None:
    """Check one entry, ``[B]`` of valid own tokens or ``None``, against its ``[B, ...]``.

    Returns:
        The entry as int32, which it may be already.

    Raises:
        TypeError: Not a tensor of int32 or int64.
        ValueError: Wrong shape or device, or, on the CPU, a value outside ``0..most``.
    """
    if length is None:
        return None
    if not isinstance(length, Tensor) or length.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"{name} must be an int32 tensor, an int64 tensor or None, got {kind(length)}"
        )
    batch = stream.shape[0]
    if tuple(length.shape) != (batch,):
        raise ValueError(f"{name} must have shape [{batch}], got {list(length.shape)}")
    if length.device != stream.device:
        raise ValueError(f"{name} must be on {stream.device} like its stream, got {length.device}")
    if batch and is_readable(length):
        low, high = (int(bound) for bound in length.aminmax())
        if low < 0 or high > most:
            bad = low if low < 0 else high
            raise ValueError(f"{name} must be in 0..{most}, the own tokens, got {bad}")
    if length.dtype == torch.int32:
        return length
    return length.clamp(0, most).to(torch.int32)  # where values are not read, none wraps around


def is_readable(tensor: Tensor) -> bool:
    """Whether values can be looked at: on the CPU, of a plain tensor, and not while tracing."""
    if torch.compiler.is_compiling() or tensor.device.type != "cpu" or type(tensor) is not Tensor:
        return False
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")  # slow to import
    traced = tracer is not None and tracer.get_proxy_mode() is not None
    return not traced and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def kind(value: Any) -> str:
    """What a message says of a value of the wrong kind."""
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else repr(value)
