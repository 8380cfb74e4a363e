"""Modules with the weights of an MBT, and how streams pass through them."""

from mbt_fast.layers.block import Attention, Block, Mlp
from mbt_fast.layers.embed import StreamEmbedding
from mbt_fast.layers.fusion import FusionLayer
from mbt_fast.layers.savings import Savings

__all__ = ["Attention", "Block", "FusionLayer", "Mlp", "Savings", "StreamEmbedding"]
