"""Operators of our own: schemas, fake kernels, batching rules. Needs torch only.

Registered by ``define``/``impl``, which costs less per call than ``custom_op``. An operator here is
not differentiable; ``autograd`` holds the Functions around them, ``flop_formulas`` their cost.
"""

from mbt_fast import flop_formulas
from mbt_fast.ops.add_layer_norm import add_layer_norm_bwd, add_layer_norm_fwd
from mbt_fast.ops.attention_lse import attention_lse_bwd, attention_lse_fwd
from mbt_fast.ops.bias_gelu import bias_gelu_bwd, bias_gelu_fwd
from mbt_fast.ops.bottleneck_attention import bottleneck_attention_bwd, bottleneck_attention_fwd
from mbt_fast.ops.residual_add import residual_add_bwd, residual_add_fwd

__all__ = [
    "add_layer_norm_bwd",
    "add_layer_norm_fwd",
    "attention_lse_bwd",
    "attention_lse_fwd",
    "bias_gelu_bwd",
    "bias_gelu_fwd",
    "bottleneck_attention_bwd",
    "bottleneck_attention_fwd",
    "residual_add_bwd",
    "residual_add_fwd",
]

flop_formulas.install()
