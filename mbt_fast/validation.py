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

from mbt_fast.autocast import autocast_dtype

MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 128
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_bottleneck_attention(
    qkv: Sequence[Tensor],
    n_bottlenecks: int,
    lengths: Sequence[Tensor | None] | None,
    update: str | None,
    scale: float | None,
    return_lse: bool,
) -> list[Tensor | None]:
    """Check the arguments of ``functional.bottleneck_attention``; return one length per stream."""
    _check_streams(qkv)
    _check_n_bottlenecks("qkv", n_bottlenecks, qkv)
    if update not in (None, "mean"):
        raise ValueError(f"update must be None or 'mean', got {update!r}")
    _check_scale(scale)
    if not isinstance(return_lse, bool):
        raise TypeError(f"return_lse must be a bool, got {return_lse!r}")
    if lengths is None:
        return [None] * len(qkv)
    return _check_lengths(lengths, "qkv", qkv, n_bottlenecks)


def check_dense_attention(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float | None
) -> None:
    """Check the arguments of ``functional.dense_attention``."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check_tensor(name, tensor)
        if tensor.ndim != 4:
            raise ValueError(f"{name} must have shape [B, H, rows, D], got {list(tensor.shape)}")
        _check_alike(name, tensor, "query", query)
    batch, heads, _, head_dim = query.shape
    keys = (batch, heads, key.shape[2], head_dim)
    for name, tensor in (("key", key), ("value", value)):
        if tuple(tensor.shape) != keys:
            raise ValueError(f"{name} must have shape {list(keys)}, got {list(tensor.shape)}")
    if valid is not None:
        if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
            raise TypeError(f"valid must be a bool tensor, got {_kind(valid)}")
        if tuple(valid.shape) != (batch, keys[2]):
            raise ValueError(
                f"valid must have shape {[batch, keys[2]]} (batch, keys), got {list(valid.shape)}"
            )
    _check_scale(scale)


def check_share_slots(
    streams: Sequence[Tensor], n_bottlenecks: int, lengths: Sequence[Tensor | None] | None
) -> list[Tensor | None]:
    """Check the arguments of ``functional.share_slots_``; return one length per stream."""
    _check_sequence("streams", streams)
    for index, stream in enumerate(streams):
        name = f"streams[{index}]"
        _check_tensor(name, stream)
        _check_alike(name, stream, "streams[0]", streams[0])
        expected = (streams[0].shape[0], *stream.shape[1:2], *streams[0].shape[2:])
        if stream.ndim != 3 or tuple(stream.shape) != expected:
            raise ValueError(
                f"{name} must have shape [B, S, C] with B and C of streams[0], "
                f"got {list(stream.shape)}"
            )
    _check_n_bottlenecks("streams", n_bottlenecks, streams)
    if lengths is None:
        return [None] * len(streams)
    return _check_lengths(lengths, "streams", streams, n_bottlenecks)


def check_bias_gelu(x: Tensor, bias: Tensor | None, approximate: str) -> None:
    """Check the arguments of ``functional.bias_gelu``."""
    _check_tensor("x", x)
    if x.ndim == 0:
        raise ValueError("x must have shape [..., C], got a scalar")
    if bias is not None:
        _check_parameter("bias", bias, "x", x)
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")


def check_add_layer_norm(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor | None] | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    keep: Sequence[Tensor | None] | None,
    eps: float,
    n_bottlenecks: int,
    lengths: Sequence[Tensor | None] | None,
) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None]]:
    """Check the arguments of ``functional.add_layer_norm``; return branches, keep and lengths."""
    lengths = check_share_slots(streams, n_bottlenecks, lengths)
    if streams[0].shape[2] == 0:
        raise ValueError(f"streams must have at least 1 channel, got {list(streams[0].shape)}")
    branches = [None] * len(streams) if branches is None else branches
    keep = [None] * len(streams) if keep is None else keep
    kinds = {"branches": branches, "weights": weights, "biases": biases, "keep": keep}
    for name, entries in kinds.items():
        _check_per_stream(name, entries, streams)
    for index, stream in enumerate(streams):
        _check_same_dtype(f"streams[{index}]", stream, "streams[0]", streams[0])
        _check_branch(f"branches[{index}]", branches[index], f"streams[{index}]", stream)
        _check_keep(f"keep[{index}]", keep[index], f"branches[{index}]", branches[index])
        weight, bias = f"weights[{index}]", f"biases[{index}]"
        _check_parameter(weight, weights[index], f"streams[{index}]", stream)
        _check_parameter(bias, biases[index], f"streams[{index}]", stream)
        _check_same_dtype(bias, biases[index], weight, weights[index])
    if not isinstance(eps, Real) or isinstance(eps, bool):
        raise TypeError(f"eps must be a number, got {_kind(eps)}")
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    return list(branches), list(keep), lengths


def check_residual_add(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    keep: Sequence[Tensor | None] | None,
    n_bottlenecks: int,
    lengths: Sequence[Tensor | None] | None,
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Check the arguments of ``functional.residual_add``; return keep and lengths."""
    lengths = check_share_slots(streams, n_bottlenecks, lengths)
    keep = [None] * len(streams) if keep is None else keep
    for name, entries in {"branches": branches, "keep": keep}.items():
        _check_per_stream(name, entries, streams)
    for index, stream in enumerate(streams):
        _check_same_dtype(f"streams[{index}]", stream, "streams[0]", streams[0])
        _check_tensor(f"branches[{index}]", branches[index])
        _check_branch(f"branches[{index}]", branches[index], f"streams[{index}]", stream)
        _check_keep(f"keep[{index}]", keep[index], f"branches[{index}]", branches[index])
    return list(keep), lengths


def _check_same_dtype(name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    if tensor.dtype != first.dtype:
        raise TypeError(
            f"{name} must have dtype {first.dtype} like {first_name}, got {tensor.dtype}"
        )


def _check_branch(name: str, branch: Any, stream_name: str, stream: Tensor) -> None:
    if branch is None:
        return
    _check_tensor(name, branch)
    _check_alike(name, branch, stream_name, stream)
    if branch.shape != stream.shape:
        raise ValueError(
            f"{name} must have shape {list(stream.shape)} like {stream_name}, "
            f"got {list(branch.shape)}"
        )


def _check_keep(name: str, keep: Any, branch_name: str, branch: Tensor | None) -> None:
    """One truth value per example of a branch."""
    if keep is None:
        return
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor or None, got {_kind(keep)}")
    if branch is None:
        raise ValueError(f"{name} must be None like {branch_name}, got {_kind(keep)}")
    if tuple(keep.shape) != (branch.shape[0],):
        raise ValueError(f"{name} must have shape [{branch.shape[0]}], got {list(keep.shape)}")
    if keep.device != branch.device:
        raise ValueError(f"{name} must be on {branch.device} like {branch_name}, got {keep.device}")


def _check_parameter(name: str, parameter: Any, like_name: str, like: Tensor) -> None:
    """One value per channel, in the dtype of the rows or in float32."""
    if not isinstance(parameter, Tensor):
        raise TypeError(f"{name} must be a tensor, got {_kind(parameter)}")
    if parameter.dtype not in {like.dtype, torch.promote_types(like.dtype, torch.float32)}:
        raise TypeError(
            f"{name} must be {like.dtype} like {like_name}, or float32 for 16-bit rows, "
            f"got {_kind(parameter)}"
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


def _check_per_stream(name: str, entries: Any, streams: Sequence[Tensor]) -> None:
    if isinstance(entries, Tensor) or not isinstance(entries, Sequence):
        raise TypeError(f"{name} must be a sequence with an entry per stream, got {_kind(entries)}")
    if len(entries) != len(streams):
        raise ValueError(
            f"{name} must have {len(streams)} entries like streams, got {len(entries)}"
        )


def _check_sequence(name: str, tensors: Sequence[Tensor]) -> None:
    if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
        raise TypeError(
            f"{name} must be a sequence of tensors, one per stream, got {_kind(tensors)}"
        )
    if not tensors:
        raise ValueError(f"{name} must hold at least one stream, got none")


def _check_streams(qkv: Sequence[Tensor]) -> None:
    _check_sequence("qkv", qkv)
    for index, stream in enumerate(qkv):
        name = f"qkv[{index}]"
        _check_tensor(name, stream)
        if stream.ndim != 5 or stream.shape[2] != 3:
            raise ValueError(f"{name} must have shape [B, S, 3, H, D], got {list(stream.shape)}")
        _check_alike(name, stream, "qkv[0]", qkv[0])
        batch, _, _, heads, head_dim = qkv[0].shape
        expected = (batch, stream.shape[1], 3, heads, head_dim)
        if tuple(stream.shape) != expected:
            raise ValueError(
                f"{name} must have shape {list(expected)} like qkv[0], got {list(stream.shape)}"
            )
    head_dim = qkv[0].shape[-1]
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(
            f"qkv must have a head dimension D of {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, got {head_dim}"
        )


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {_kind(tensor)}")
    if tensor.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {_kind(tensor)}"
        )


def _check_alike(name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    """The same device, and the same dtype after autocast, which leaves float64 alone."""
    if tensor.dtype != first.dtype and autocast_dtype(tensor) != autocast_dtype(first):
        raise TypeError(
            f"{name} must have dtype {first.dtype} like {first_name}, got {tensor.dtype}"
        )
    if tensor.device != first.device:
        raise ValueError(f"{name} must be on {first.device} like {first_name}, got {tensor.device}")


def _check_n_bottlenecks(name: str, n_bottlenecks: int, streams: Sequence[Tensor]) -> None:
    integral = isinstance(n_bottlenecks, (Integral, torch.SymInt))
    if isinstance(n_bottlenecks, bool) or not integral:
        raise TypeError(f"n_bottlenecks must be an integer, got {n_bottlenecks!r}")
    if n_bottlenecks < 0:
        raise ValueError(f"n_bottlenecks must be at least 0, got {n_bottlenecks}")
    for index, stream in enumerate(streams):
        if stream.shape[1] < n_bottlenecks:
            raise ValueError(
                f"{name}[{index}] must have at least n_bottlenecks = {n_bottlenecks} rows, "
                f"got {stream.shape[1]}"
            )


def _check_scale(scale: float | None) -> None:
    number = isinstance(scale, (Real, torch.SymFloat)) and not isinstance(scale, bool)
    if scale is not None and not number:
        raise TypeError(f"scale must be a number or None, got {_kind(scale)}")


def _check_lengths(
    lengths: Sequence[Tensor | None],
    name: str,
    streams: Sequence[Tensor],
    n_bottlenecks: int,
) -> list[Tensor | None]:
    if isinstance(lengths, Tensor) or not isinstance(lengths, Sequence):
        raise TypeError(
            f"lengths must be a sequence with an entry per stream, got {_kind(lengths)}"
        )
    if len(lengths) != len(streams):
        raise ValueError(
            f"lengths must have {len(streams)} entries like {name}, got {len(lengths)}"
        )
    for index, (length, stream) in enumerate(zip(lengths, streams, strict=True)):
        check_length(f"lengths[{index}]", length, stream, stream.shape[1] - n_bottlenecks)
    return list(lengths)


def check_length(name: str, length: Tensor | None, stream: Tensor, most: int) -> None:
    """Check one entry, int32 ``[B]`` of valid own tokens or ``None``, against its ``[B, ...]``.

    Raises:
        TypeError: Not an int32 tensor.
        ValueError: Wrong shape or device, or, on the CPU, a value outside ``0..most``.
    """
    if length is None:
        return
    if not isinstance(length, Tensor) or length.dtype != torch.int32:
        raise TypeError(f"{name} must be an int32 tensor or None, got {_kind(length)}")
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


def is_readable(tensor: Tensor) -> bool:
    """Whether values can be looked at: on the CPU, of a plain tensor, and not while tracing."""
    if torch.compiler.is_compiling() or tensor.device.type != "cpu" or type(tensor) is not Tensor:
        return False
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")  # slow to import
    traced = tracer is not None and tracer.get_proxy_mode() is not None
    return not traced and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _kind(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else repr(value)
