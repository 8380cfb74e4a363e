"""``autograd.Function``s around the operators of ``ops``."""

from mbt_fast.autograd.attention_lse import attention_lse
from mbt_fast.autograd.bottleneck_attention import bottleneck_attention

__all__ = ["attention_lse", "bottleneck_attention"]
