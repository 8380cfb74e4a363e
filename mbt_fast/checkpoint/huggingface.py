"""Vision and audio transformers of Hugging Face: their directories, and their names as timm's.

Sources: the modules ``vit``, ``deit`` and ``audio_spectrogram_transformer`` of transformers 4 and
5, whose names differ inside a layer. Saved files have those of version 4.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbt_fast.checkpoint.files import read_json, read_safetensors
from mbt_fast.checkpoint.torch_files import read_torch
from mbt_fast.errors import CheckpointError

_FILES = ("model.safetensors", "pytorch_model.bin")
_MARK = "embeddings.patch_embeddings.projection.weight"
_PREFIX = re.compile(r"^(vit|deit|audio_spectrogram_transformer)\.")
_LAYER = re.compile(r"^(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)$")
_QKV = {
    **{f"attention.attention.{name}": i for i, name in enumerate(("query", "key", "value"))},
    **{f"attention.{name}_proj": i for i, name in enumerate("qkv")},
}
_PARTS = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "pooler.dense": "pre_logits.fc",  # a tanh follows, as in Google's
    "classifier": "head",
    "classifier.layernorm": "head.norm",
    "classifier.dense": "head.fc",
    "cls_classifier": "head",
    "distillation_classifier": "head_dist",
}
_UNUSED = "embeddings.mask_token"  # of masked pre-training


def is_hugging_face(tensors: Mapping[str, Tensor]) -> bool:
    """Whether names are those of a ViT, DeiT or AST of Hugging Face."""
    return any(name.endswith(_MARK) for name in tensors)


def hugging_face_to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename to timm's names, and stack query, key and value.

    Args:
        tensors: As transformers saves them, or of a model's ``state_dict()``.

    Returns:
        The same values; names that are not known keep theirs. An AST's head is ``head.norm`` and
        ``head.fc``. The unused mask token is left out.

    Raises:
        CheckpointError: A layer lacks one of query, key and value.
    """
    plain = {_PREFIX.sub("", name): tensor for name, tensor in tensors.items()}
    plain.pop(_UNUSED, None)
    renamed: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in plain.items():
        match = _LAYER.match(name)
        if match and match[2] in _QKV:
            stack = stacks.setdefault(f"blocks.{match[1]}.attn.qkv.{match[3]}", {})
            stack[_QKV[match[2]]] = tensor
        elif match and match[2] in _PARTS:
            renamed[f"blocks.{match[1]}.{_PARTS[match[2]]}.{match[3]}"] = tensor
        else:
            renamed[_outside(name)] = tensor
    for name, stack in stacks.items():
        if len(stack) < 3:
            raise CheckpointError(f"{name} must be query, key and value, got {len(stack)} of them")
        renamed[name] = torch.cat([stack[index] for index in range(3)])
    return renamed


def _outside(name: str) -> str:
    """The new name of what is not in a layer."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    module, dot, leaf = name.rpartition(".")
    return f"{_OUTSIDE[module]}.{leaf}" if dot and module in _OUTSIDE else name


def read_directory(directory: Path) -> dict[str, Tensor]:
    """The tensors of a directory as ``save_pretrained`` of transformers writes it, whole or split.

    Raises:
        CheckpointError: It holds no weights, or a file is malformed.
        OSError: A file cannot be read.
    """
    for name in _FILES:
        if (directory / name).is_file():
            return _read(directory / name)
        index = directory / f"{name}.index.json"
        if index.is_file():
            return {n: t for part in _parts(index) for n, t in _read(directory / part).items()}
    raise CheckpointError(f"{directory} must hold {' or '.join(_FILES)}, got neither")


def read_config(path: Path) -> dict[str, Any]:
    """The ``config.json`` of transformers; empty if there is none.

    Args:
        path: A directory, or a file in one under the name that transformers gives to weights.

    Raises:
        CheckpointError: The config is malformed.
    """
    if path.is_file() and path.name not in _FILES:
        return {}
    config = (path.parent if path.is_file() else path) / "config.json"
    values = read_json(config) if config.is_file() else {}
    return values if "model_type" in values else {}


def _parts(index: Path) -> list[str]:
    """The files among which weights are split."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index}: weight_map must be a mapping, got {weight_map!r}")
    parts = sorted(set(map(str, weight_map.values())))
    if not parts or any(Path(part).name != part for part in parts):
        raise CheckpointError(f"{index}: weight_map must name files beside it, got {parts}")
    return parts


def _read(path: Path) -> dict[str, Tensor]:
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
