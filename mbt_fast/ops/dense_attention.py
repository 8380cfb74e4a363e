"""``dense_attention``: queries of one modality, keys and values of all, as vanilla fusion asks."""

import torch
from torch import Tensor

from mbt_fast.ops import stock
from mbt_fast.ops.autocast import autocast_dtype
from mbt_fast.ops.checks import check_alike, check_scale, check_tensor, kind
from mbt_fast.ops.dispatch import REFERENCE, STOCK, Call, select
from mbt_fast.ops.softmax import attention

BY_BACKEND = {STOCK.name: stock.attention, REFERENCE.name: attention}


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    valid: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """``softmax(scale * query @ key.mT) @ value``: the attention of vanilla fusion (Eq. 4-6).

    The queries of one modality may attend to the keys of all: the pairwise attention that
    bottlenecks replace, and that they are measured against.

    Args:
        query: ``[B, H, S, D]``, floating point.
        key: ``[B, H, K, D]``.
        value: ``[B, H, K, D]``.
        valid: bool ``[B, K]``, the keys that take part, or ``None`` for all. Where no key is valid
            the output is zero.
        scale: Factor on the scores. ``None`` means ``D ** -0.5``.
        backend: ``"auto"``, ``"sdpa"`` or ``"reference"``.

    Returns:
        ``[B, H, S, D]``, in the dtype of ``query`` (under autocast, its dtype).

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape or device disagrees with ``query``.
        mbt_fast.dispatch.BackendError: The named backend cannot run this call.
    """
    check(query, key, value, valid, scale)
    return attend(query, key, value, valid, scale, backend=backend)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    scale: float | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """``dense_attention`` of arguments that were checked."""
    query, key, value = (tensor.to(autocast_dtype(tensor)) for tensor in (query, key, value))
    call = Call("dense_attention", query.device, query.dtype)
    attention_of = BY_BACKEND[select(call, backend).name]
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    if valid is None:
        return attention_of(query, key, value, None, factor)
    left_out = ~valid[:, None, :, None]
    key, value = key.masked_fill(left_out, 0), value.masked_fill(left_out, 0)
    out = attention_of(query, key, value, valid, factor)
    return out.masked_fill(~valid.any(dim=-1)[:, None, None, None], 0)


def check(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float | None
) -> None:
    """Check the arguments of ``dense_attention``."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, tensor)
        if tensor.ndim != 4:
            raise ValueError(f"{name} must have shape [B, H, rows, D], got {list(tensor.shape)}")
        check_alike(name, tensor, "query", query)
    batch, heads, _, head_dim = query.shape
    keys = (batch, heads, key.shape[2], head_dim)
    for name, tensor in (("key", key), ("value", value)):
        if tuple(tensor.shape) != keys:
            raise ValueError(f"{name} must have shape {list(keys)}, got {list(tensor.shape)}")
    if valid is not None:
        if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
            raise TypeError(f"valid must be a bool tensor, got {kind(valid)}")
        if tuple(valid.shape) != (batch, keys[2]):
            raise ValueError(
                f"valid must have shape {[batch, keys[2]]} (batch, keys), got {list(valid.shape)}"
            )
    check_scale(scale)
