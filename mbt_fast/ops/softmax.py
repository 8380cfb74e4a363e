"""What attention means, in eager PyTorch: any float dtype, any device, twice differentiable."""

import torch
from torch import Tensor

from mbt_fast.ops.streams import wide_dtype


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
    wide = wide_dtype(query.dtype)
    products = scale * (query.to(wide) @ key.to(wide).mT)
    if valid is None:
        return products
    return products.masked_fill(~attended(valid)[:, None, None, :], float("-inf"))


def attended(valid: Tensor) -> Tensor:
    """Keys that take part in softmax: the valid ones, or all of them where none is valid."""
    return valid | ~valid.any(dim=-1, keepdim=True)


def mask_lse(lse: Tensor, valid: Tensor | None) -> Tensor:
    """Set the log-sum-exp ``[B, H, S]`` of rows that attend to nothing to ``-inf``."""
    return lse if valid is None else lse.masked_fill(~valid[:, None, :], float("-inf"))


def heads_first(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """View packed ``[B, S, 3, H, D]`` as query, key and value ``[B, H, S, D]``.

    Two views are made quicker than four, but the gradient of these two would not be contiguous.
    """
    if not (packed.requires_grad and torch.is_grad_enabled()):
        query, key, value = packed.transpose(1, 3).unbind(2)
        return query, key, value
    query, key, value = packed.unbind(2)
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def log_sum_exp(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    """``logsumexp(scale * query @ key.mT)`` over the valid keys: wide ``[B, H, S]``."""
    return torch.logsumexp(scores(query, key, valid, scale), dim=-1)
