"""What selective activation checkpointing should keep."""

from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy

import mbt_fast.ops.bottleneck_attention  # noqa: F401  registers our operators

SAVED_OPS = frozenset(  # every overload of these
    [
        torch.ops.mbt_fast.attention_lse_fwd,
        torch.ops.mbt_fast.bottleneck_attention_fwd,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
        torch.ops.aten._scaled_dot_product_flash_attention,
        torch.ops.aten._scaled_dot_product_efficient_attention,
        torch.ops.aten._scaled_dot_product_cudnn_attention,
    ]
)


def checkpoint_policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep the output of attention, which is small and dear, and recompute everything else.

    For ``torch.utils.checkpoint.create_selective_checkpoint_contexts``.

    Example:
        >>> from functools import partial
        >>> from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
        >>> contexts = partial(create_selective_checkpoint_contexts, checkpoint_policy)
        >>> layer, x = torch.nn.Linear(8, 8), torch.ones(2, 8)
        >>> checkpoint(layer, x, use_reentrant=False, context_fn=contexts).shape
        torch.Size([2, 8])
    """
    saves = getattr(op, "overloadpacket", None) in SAVED_OPS
    return CheckpointPolicy.MUST_SAVE if saves else CheckpointPolicy.PREFER_RECOMPUTE
