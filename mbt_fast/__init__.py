"""Fast, exact attention bottlenecks: the Multimodal Bottleneck Transformer (MBT) in PyTorch.

Attention bottlenecks are those of "Attention Bottlenecks for Multimodal Fusion" (Nagrani et al.,
NeurIPS 2021), not the Bottleneck Transformer for visual recognition (BoTNet). Importing needs torch
alone, and touches no device.
"""

from mbt_fast import checkpoint, dispatch, errors, flops, functional
from mbt_fast.activation_checkpointing import checkpoint_policy
from mbt_fast.functional import bottleneck_attention, dense_attention, share_slots_
from mbt_fast.models import MBT, MBTConfig, create_model, export, fuse, list_models
from mbt_fast.rollout import Rollout, rollout

__version__ = "0.1.0"

__all__ = [
    "MBT",
    "MBTConfig",
    "Rollout",
    "__version__",
    "bottleneck_attention",
    "checkpoint",
    "checkpoint_policy",
    "create_model",
    "dense_attention",
    "dispatch",
    "errors",
    "export",
    "flops",
    "functional",
    "fuse",
    "list_models",
    "rollout",
    "share_slots_",
]
