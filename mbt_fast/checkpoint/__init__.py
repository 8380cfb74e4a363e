"""Weights: official checkpoints, image ViTs and our own format, to and from a state dict.

Files are read without executing anything in them. Reading or writing one needs an optional package
(``msgpack`` and ``numpy`` for scenic, ``safetensors`` for ours); importing this package needs torch
alone.
"""

from mbt_fast.checkpoint.infer import infer_config
from mbt_fast.checkpoint.pretrained import (
    load_pretrained,
    resize_position_embeddings,
    save_pretrained,
)
from mbt_fast.checkpoint.scenic import load_scenic, save_scenic, scenic_to_torch, torch_to_scenic
from mbt_fast.checkpoint.shapes import expected_shapes
from mbt_fast.checkpoint.vit import from_vit
from mbt_fast.checkpoint.vit_files import load_ast, load_vit

__all__ = [
    "expected_shapes",
    "from_vit",
    "infer_config",
    "load_ast",
    "load_pretrained",
    "load_scenic",
    "load_vit",
    "resize_position_embeddings",
    "save_pretrained",
    "save_scenic",
    "scenic_to_torch",
    "torch_to_scenic",
]
