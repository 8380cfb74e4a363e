"""The ops: public functions, each documented where it is defined."""

from mbt_fast.ops.add_layer_norm import add_layer_norm
from mbt_fast.ops.bias_gelu import bias_gelu
from mbt_fast.ops.bottleneck_attention import bottleneck_attention
from mbt_fast.ops.dense_attention import dense_attention
from mbt_fast.ops.linear import linear
from mbt_fast.ops.residual_add import residual_add
from mbt_fast.ops.share_slots import share_slots_

__all__ = [
    "add_layer_norm",
    "bias_gelu",
    "bottleneck_attention",
    "dense_attention",
    "linear",
    "residual_add",
    "share_slots_",
]
