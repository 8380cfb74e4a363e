"""Modules with the weights of an MBT, and how streams pass through them."""

from mbt_fast.layers.block import Attention, Block, Mlp
from mbt_fast.layers.embed import StreamEmbedding
from mbt_fast.layers.execution import Execution
from mbt_fast.layers.fusion_layer import FusionLayer

__all__ = ["Attention", "Block", "Execution", "FusionLayer", "Mlp", "StreamEmbedding"]
