"""Google's image ViTs in flax: the files of their releases, and their names as timm's.

Sources: the original release, AugReg and big_vision for the names.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mbt_fast.checkpoint.layouts import (
    SAME,
    Entry,
    block_entries,
    convolution,
    dense_entries,
    flax_shapes,
    norm_entries,
    to_tensors,
    to_torch,
)
from mbt_fast.checkpoint.shapes import Shape, check_shapes, vit_shapes
from mbt_fast.errors import CheckpointError

_HEADS = {"pre_logits.fc": "pre_logits", "head": "head"}  # timm's names, Google's
_PREFIXES = ("opt/target/", "params/img/", "params/")

_BLOCK = "Transformer/encoderblock_0"  # all have its sizes

# The original release numbers all submodules of a block in one row; big_vision and scenic number
# each kind apart.
_RELEASE_NAMES = (
    (r"(encoderblock_\d+/)LayerNorm_2/", r"\1LayerNorm_1/"),
    (r"(encoderblock_\d+/)MultiHeadDotProductAttention_1/", r"\1MultiHeadDotProductAttention_0/"),
    (r"(encoderblock_\d+/)MlpBlock_3/", r"\1MlpBlock_0/"),
    (r"^Transformer/posembed_input/pos_embedding$", "pos_embedding"),
    (r"^output_projection/", "head/"),
)


def read_npz(path: Path) -> dict[str, Tensor]:
    """A ViT of Google as CPU tensors with timm's names.

    Raises:
        CheckpointError: The file is malformed, holds more than arrays, or is not a ViT.
        OSError: The file cannot be read.
    """
    import numpy as np

    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except Exception as error:  # a malformed archive may raise anything
            raise CheckpointError(f"{path}: not a whole npz file of arrays alone") from error
    try:
        return google_to_timm(arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def google_to_timm(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename and transpose the parameters of a flax ViT to timm's.

    Args:
        arrays: By path, with the names of the original release and AugReg (``LayerNorm_2``,
            ``MultiHeadDotProductAttention_1``, ``MlpBlock_3``), of big_vision, or of scenic; with
            or without the prefix ``opt/target/`` or ``params/``.

    Returns:
        The ViT as CPU tensors in the dtype of the arrays.

    Raises:
        CheckpointError: Arrays are missing, misshapen, or have no place in a plain ViT.
    """
    params = {_plain_name(path): array for path, array in arrays.items()}
    matches = (re.match(r"Transformer/encoderblock_(\d+)/", path) for path in params)
    depth = len({match[1] for match in matches if match})
    num_heads = _size(params, f"{_BLOCK}/MultiHeadDotProductAttention_0/query/kernel", 1)
    width = _size(params, "embedding/bias", 0)
    if num_heads < 1 or width % num_heads:
        raise CheckpointError(f"the heads of a ViT must divide its width {width}, got {num_heads}")
    entries = _table(params, depth, num_heads)
    expected = flax_shapes(entries, _timm_shapes(params, depth))
    check_shapes(params, expected, "the arrays are not a plain ViT")
    return to_torch(entries, to_tensors(params))


def _plain_name(path: str) -> str:
    """A path without prefix, in the names of scenic."""
    prefix = next((p for p in _PREFIXES if path.startswith(p)), "")
    name = path.removeprefix(prefix)
    for release, scenic in _RELEASE_NAMES:
        name = re.sub(release, scenic, name)
    return name


def _table(params: Mapping[str, Any], depth: int, num_heads: int) -> list[Entry]:
    entries = [
        Entry("cls_token", ("cls",), SAME),
        Entry("pos_embed", ("pos_embedding",), SAME),
        *dense_entries("patch_embed.proj", "embedding", convolution(2)),
        *norm_entries("norm", "Transformer/encoder_norm"),
    ]
    for layer in range(depth):
        path = f"Transformer/encoderblock_{layer}"
        entries += block_entries(f"blocks.{layer}", path, num_heads)
    for name, path in _HEADS.items():
        if f"{path}/kernel" in params:
            entries += dense_entries(name, path)
    return entries


def _timm_shapes(params: Mapping[str, Any], depth: int) -> dict[str, Shape]:
    """Shapes of the ViT that has the sizes which its biases and its stem tell."""
    width = _size(params, "embedding/bias", 0)
    patch = (_size(params, "embedding/kernel", 0), _size(params, "embedding/kernel", 1))
    mlp_dim = _size(params, f"{_BLOCK}/MlpBlock_0/Dense_0/bias", 0)
    shapes = vit_shapes(width, mlp_dim, depth, patch, _size(params, "pos_embedding", 1))
    features = width
    for name, path in _HEADS.items():
        outputs = _size(params, f"{path}/bias", 0)
        shapes |= {f"{name}.weight": (outputs, features), f"{name}.bias": (outputs,)}
        features = outputs if f"{path}/kernel" in params else features
    return shapes


def _size(params: Mapping[str, Any], path: str, axis: int) -> int:
    """An extent of an array; 1 where there is none, which the check of shapes then reports."""
    shape = params[path].shape if path in params else ()
    return int(shape[axis]) if axis < len(shape) else 1
