"""What selective activation checkpointing should keep."""

from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy

from mbt_fast import ops

_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
SAVED_OPS = frozenset(
    [
        ops.attention_lse_fwd,
        ops.bottleneck_attention_fwd,
        *(getattr(torch.ops.aten, name).default for name in _ATTENTION),
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
    return CheckpointPolicy.MUST_SAVE if op in SAVED_OPS else CheckpointPolicy.PREFER_RECOMPUTE
