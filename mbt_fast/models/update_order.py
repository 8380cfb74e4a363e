"""The asymmetric update of the paper's appendix: modalities share bottleneck tokens in turn."""

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mbt_fast.layers import FusionLayer
from mbt_fast.layers.fusion_layer import Streams
from mbt_fast.ops.streams import expand


def warn_of_no_exchange(fusion_layer: int) -> None:
    """Say that only the last layer is fused; the caller's caller is the one who builds a model."""
    message = (
        f"fusion_layer = {fusion_layer}, the last layer, exchanges nothing: "
        "nobody reads the bottleneck tokens after it"
    )
    warnings.warn(message, UserWarning, stacklevel=3)


def fuse_in_order(
    layers: Sequence[FusionLayer],
    streams: Streams,
    bottleneck_tokens: Tensor,
    order: Sequence[str],
    lengths: Mapping[str, Tensor],
    rows_of: Callable[[FusionLayer], list[int] | None],
) -> Streams:
    """Pass streams through fused layers, one modality after the other (Eq. 10-11).

    Equal, for modalities ``m`` of the order in every layer, to::

        x_m, tokens = split(layer_m(cat([x_m, tokens])))

    A modality that an example lacks passes the tokens on as they are.

    Args:
        layers: The fused ones.
        streams: Own tokens ``[B, N_m, C]`` of the modalities that are given.
        bottleneck_tokens: ``[1, P, C]``.
        order: All modalities of the model.
        lengths: int32 ``[B]`` per modality that has padding.
        rows_of: The rows that a layer computes, or ``None`` for all.

    Returns:
        Own tokens of each stream, or the rows that the last layer computes.
    """
    order = [m for m in order if m in streams]
    own, first = dict(streams), streams[order[0]]
    n_slots = bottleneck_tokens.shape[1]
    tokens = bottleneck_tokens.to(first.dtype).expand(len(first), -1, -1)
    for layer in layers:
        for m in order:
            length = {m: lengths[m]} if m in lengths else {}
            rows = rows_of(layer) if m == order[-1] else None
            joined = torch.cat([own[m], tokens], dim=1)
            out = layer({m: joined}, length, n_slots=n_slots, rows=rows)[m]
            if rows is not None:  # of the last layer, whose slots nobody reads
                own[m] = out
                continue
            own[m], written = out[:, :-n_slots], out[:, -n_slots:]
            if length:
                written = torch.where(expand(length[m] > 0, written), written, tokens)
            tokens = written
    return own
