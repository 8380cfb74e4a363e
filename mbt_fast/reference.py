"""What the ops mean, in eager PyTorch: any float dtype, any device, twice differentiable.

Shape letters, here and everywhere: ``B`` batch, ``M`` streams, ``S`` rows of a stream, ``N`` own
tokens, ``P`` slots, ``H`` heads, ``D`` head dimension, ``C`` channels (``H * D``).
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm


def attention(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float
) -> Tensor:
    """``softmax(scale * query @ key.mT) @ value`` over the valid keys.

    Scores and softmax are float32, or float64 for float64; probabilities are rounded to the dtype
    of the values before the second product, as in every fused kernel.

    Args:
        query: ``[B, H, S, D]``.
        key: ``[B, H, K, D]``, finite where not valid.
        value: ``[B, H, K, D]``, finite where not valid.
        valid: bool ``[B, K]``, or ``None`` for all. An example without a valid key attends to all
            of them: softmax stays finite, and the caller, who knows, drops the result.
        scale: Factor on the scores.

    Returns:
        ``[B, H, S, D]``, in the dtype of ``query``.
    """
    return torch.softmax(scores(query, key, valid, scale), dim=-1).to(value.dtype) @ value


def scores(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    """``scale * query @ key.mT`` as ``[B, H, S, K]``, wide, and ``-inf`` for keys left out."""
    wide = softmax_dtype(query.dtype)
    products = scale * (query.to(wide) @ key.to(wide).mT)
    if valid is None:
        return products
    return products.masked_fill(~attended(valid)[:, None, None, :], float("-inf"))


def bottleneck_attention(
    qkv: Sequence[Tensor],
    n_bottlenecks: int,
    lengths: Sequence[Tensor | None],
    update: str | None,
    scale: float,
    return_lse: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Self-attention inside each stream, then, with ``update="mean"``, the shared slots.

    Arguments are those of ``functional.bottleneck_attention``, already checked.

    Returns:
        ``[B, S, H, D]`` and float ``[B, H, S]`` per stream. Padding and absent streams hold zeros,
        and ``-inf`` in the log-sum-exp.
    """
    outs, lses = [], []
    for stream, length in zip(qkv, lengths, strict=True):
        valid = valid_rows(length, stream.shape[1], n_bottlenecks)
        query, key, value = heads_first(drop_padding(stream, valid))
        out = attention(query, key, value, valid, scale).transpose(1, 2)
        outs.append(drop_padding(out, valid))
        if return_lse:
            lse = torch.logsumexp(scores(query, key, valid, scale), dim=-1)
            lses.append(mask_lse(lse, valid))
    if update == "mean":
        outs = share_slots(outs, n_bottlenecks, lengths)
    return outs, lses


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
    wide = softmax_dtype(streams[0].dtype)
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


def bias_gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """``gelu(x + bias)``, by torch's own function, in the dtype of ``x``.

    Args:
        x: ``[..., C]``.
        bias: ``[C]`` or ``None``.
        approximate: ``"tanh"`` or ``"none"``.
    """
    return gelu(x if bias is None else x + bias, approximate=approximate).to(x.dtype)


def add_layer_norm(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    keep: Sequence[Tensor | None],
    lengths: Sequence[Tensor | None],
    n_bottlenecks: int,
    eps: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """Residual sum, shared slots and LayerNorm of each stream, by torch's own functions.

    Arguments are those of ``functional.add_layer_norm``, already checked.

    Returns:
        ``[B, S_m, C]`` per stream: the sums, whose slots are shared as by ``share_slots``, and
        their LayerNorm.
    """
    sums = [add_branch(*terms) for terms in zip(streams, branches, keep, strict=True)]
    if n_bottlenecks:
        slots = shared_slots(sums, n_bottlenecks, lengths)
        sums = [s.clone() if b is None else s for s, b in zip(sums, branches, strict=True)]
        for total, shared in zip(sums, slots, strict=True):  # in place, which saves a copy
            total[:, total.shape[1] - n_bottlenecks :] = shared
    rows = zip(sums, weights, biases, strict=True)
    return sums, [norm_rows(total, weight, bias, eps) for total, weight, bias in rows]


def residual_add(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    keep: Sequence[Tensor | None],
    lengths: Sequence[Tensor | None],
    n_bottlenecks: int,
) -> list[Tensor]:
    """Residual sum of each stream; then, if ``n_bottlenecks`` is not 0, ``write_mean_slots``.

    Arguments are those of ``functional.residual_add``, already checked.
    """
    sums = [add_branch(*terms) for terms in zip(streams, branches, keep, strict=True)]
    if n_bottlenecks:
        write_mean_slots(sums, n_bottlenecks, lengths)
    return sums


def add_branch(stream: Tensor, branch: Tensor | None, keep: Tensor | None) -> Tensor:
    """The residual sum; a branch is left out where ``keep`` is false, NaN and all."""
    if branch is None:
        return stream
    return stream + (branch if keep is None else torch.where(expand(keep, branch), branch, 0))


def norm_rows(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension, in the dtype of ``x``; parameters may be wider."""
    wide = x.to(weight.dtype)
    return layer_norm(wide, weight.shape, weight, bias, eps).to(x.dtype)


def valid_rows(length: Tensor | None, rows: int, n_bottlenecks: int) -> Tensor | None:
    """Which rows of a stream take part: bool ``[B, S]``, or ``None`` if all do.

    Own rows below ``length``, and every slot of a stream that is present (``length > 0``).
    """
    if length is None:
        return None
    row = torch.arange(rows, device=length.device)
    own = row < rows - n_bottlenecks
    return torch.where(own, row < length[:, None], (length > 0)[:, None])


def attended(valid: Tensor) -> Tensor:
    """Keys that take part in softmax: the valid ones, or all of them where none is valid."""
    return valid | ~valid.any(dim=-1, keepdim=True)


def drop_padding(rows: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the rows ``[B, S, ...]`` that are not valid, and their gradients; NaN does not leak."""
    return rows if valid is None else rows.masked_fill(~expand(valid, rows), 0)


def mask_lse(lse: Tensor, valid: Tensor | None) -> Tensor:
    """Set the log-sum-exp ``[B, H, S]`` of rows that attend to nothing to ``-inf``."""
    return lse if valid is None else lse.masked_fill(~valid[:, None, :], float("-inf"))


def heads_first(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """View packed ``[B, S, 3, H, D]`` as query, key and value ``[B, H, S, D]``."""
    query, key, value = packed.unbind(2)
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def expand(mask: Tensor, like: Tensor) -> Tensor:
    """Append dimensions of size 1, so that ``mask`` broadcasts against ``like`` from the left."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32 for 16-bit types, the type itself otherwise."""
    return torch.promote_types(dtype, torch.float32)
