"""The log-sum-exp of attention scores, differentiable once."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from mbt_fast import ops


class AttentionLse(torch.autograd.Function):
    """The log-sum-exp of attention scores; ``attention_lse`` has the meaning."""

    generate_vmap_rule = True

    @staticmethod
    def forward(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
        """Run the forward operator."""
        return ops.attention_lse_fwd(query, key, valid, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the backward recomputes the scores from."""
        query, key, valid, ctx.scale = inputs
        ctx.save_for_backward(query, key, valid)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dlse: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of query and key."""
        if dlse is None:
            return None, None, None, None
        query, key, valid = ctx.saved_tensors
        return *AttentionLseBwd.apply(dlse, query, key, valid, ctx.scale), None, None


class AttentionLseBwd(torch.autograd.Function):
    """The first derivative of ``AttentionLse``; it has none of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        dlse: Tensor, query: Tensor, key: Tensor, valid: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Run the backward operator."""
        return ops.attention_lse_bwd(dlse, query, key, valid, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep nothing: the backward only raises."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        """Refuse, and say who can."""
        raise NotImplementedError(
            "the log-sum-exp of backend 'sdpa' is differentiable once; for second derivatives "
            "use backend='reference'"
        )


def attention_lse(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    """``logsumexp(scale * query @ key.mT)`` over the valid keys, without the score matrix.

    Args:
        query: ``[B, H, S, D]``.
        key: ``[B, H, K, D]``.
        valid: bool ``[B, K]`` or ``None``; see ``reference.attention``.
        scale: Factor on the scores.

    Returns:
        ``[B, H, S]``, float32, or float64 for float64 inputs.
    """
    return AttentionLse.apply(query, key, valid, scale)
