"""Rows and slots of streams: which take part, and how slots are shared (Eq. 9).

Shape letters, here and everywhere: ``B`` batch, ``M`` streams, ``S`` rows of a stream, ``N`` own
tokens, ``P`` slots, ``H`` heads, ``D`` head dimension, ``C`` channels (``H * D``).
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor


def valid_rows(length: Tensor | None, rows: int, n_bottlenecks: int) -> Tensor | None:
    """Which rows of a stream take part: bool ``[B, S]``, or ``None`` if all do.

    Own rows below ``length``, and every slot of a stream that is present (``length > 0``).
    """
    if length is None:
        return None
    row = torch.arange(rows, device=length.device)
    valid = row < length[:, None]
    if n_bottlenecks == 0:
        return valid
    return valid | ((row >= rows - n_bottlenecks) & (length > 0)[:, None])


def drop_padding(rows: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the rows ``[B, S, ...]`` that are not valid, and their gradients; NaN does not leak."""
    return rows if valid is None else rows.masked_fill(~expand(valid, rows), 0)


def share_slots(
    streams: Sequence[Tensor], n_bottlenecks: int, lengths: Sequence[Tensor | None]
) -> list[Tensor]:
    """Replace the slots of every present stream by their mean over the present streams (Eq. 9).

    Args:
        streams: ``M`` tensors ``[B, S_m, ...]`` whose last ``P`` rows are the slots.
        n_bottlenecks: ``P``.
        lengths: Per stream ``None`` or int ``[B]``; 0 means absent, and absent slots become zero.
    """
    if n_bottlenecks == 0:
        return list(streams)
    slots = shared_slots(streams, n_bottlenecks, lengths)
    return [
        torch.cat([stream[:, : stream.shape[1] - n_bottlenecks], shared], dim=1)
        for stream, shared in zip(streams, slots, strict=True)
    ]


def shared_slots(
    streams: Sequence[Tensor], n_bottlenecks: int, lengths: Sequence[Tensor | None]
) -> list[Tensor]:
    """The slots of each stream after the shared update, ``[B, P, ...]``; arguments as above."""
    mean = mean_slots(streams, n_bottlenecks, lengths)
    return [
        (mean if length is None else torch.where(expand(length > 0, mean), mean, 0)).to(s.dtype)
        for s, length in zip(streams, lengths, strict=True)
    ]


def mean_slots(
    streams: Sequence[Tensor], n_bottlenecks: int, lengths: Sequence[Tensor | None]
) -> Tensor:
    """Mean of the last ``P`` rows over the present streams, zero if none is: ``[B, P, ...]``.

    Summed in float32 or wider and in the order of the streams, so that it is reproducible.
    """
    wide = wide_dtype(streams[0].dtype)
    total: Tensor | int = 0
    count: Tensor | int = 0
    for stream, length in zip(streams, lengths, strict=True):
        slots = stream[:, stream.shape[1] - n_bottlenecks :].to(wide)
        if length is None:
            total, count = total + slots, count + 1
        else:
            present = expand(length > 0, slots)
            total, count = total + torch.where(present, slots, 0), count + present.to(wide)
    if isinstance(count, Tensor):
        count = count.clamp(min=1)
    return cast(Tensor, total / count)


def write_mean_slots(
    streams: Sequence[Tensor], n_bottlenecks: int, lengths: Sequence[Tensor | None]
) -> None:
    """Write ``mean_slots`` into every stream in place, also where it is absent."""
    mean = mean_slots(streams, n_bottlenecks, lengths)
    for stream in streams:
        stream[:, stream.shape[1] - n_bottlenecks :] = mean.to(stream.dtype)


def expand(mask: Tensor, like: Tensor) -> Tensor:
    """Append dimensions of size 1, so that ``mask`` broadcasts against ``like`` from the left."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which sums are taken: float32 for 16-bit types, the type itself otherwise."""
    return torch.promote_types(dtype, torch.float32)


def add_branch(stream: Tensor, branch: Tensor | None, keep: Tensor | None) -> Tensor:
    """The residual sum; a branch is left out where ``keep`` is false, NaN and all."""
    if branch is None:
        return stream
    return stream + (branch if keep is None else torch.where(expand(keep, branch), branch, 0))
