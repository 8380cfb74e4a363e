"""Weights of the AV-MAE fork of MBT, under the names of the official model.

The fork gives no suffix to the first of its modalities, whichever it is, calls the spectrogram
``_spec``, keeps its head in a module of its own, and adds sines in place of learned positions.
Source: ``scenic/projects/av_mae/mbt.py``.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mbt_fast.config import MBTConfig
from mbt_fast.errors import CheckpointError

_HEAD = "ProjectionHeadAndClassifier_0/"
_BLOCK = re.compile(r"^(Transformer/encoderblock_\d+)(?:_(\w+))?/")
_LONGEST_PERIOD = 1.0e4


def is_av_mae(params: Mapping[str, Any]) -> bool:
    """Whether parameters by path are the fork's: an MBT's without positions."""
    positions = any(path.startswith("Transformer/posembed_input") for path in params)
    return not positions and any(_BLOCK.match(path) for path in params)


def with_official_names(params: Mapping[str, Any], config: MBTConfig) -> dict[str, Any]:
    """Rename the fork's parameters, and write its sines as positions, which can then be trained.

    Args:
        params: Arrays or tensors by the fork's path.
        config: The model; its modalities stand in the fork's order.

    Returns:
        By official path, see ``scenic_to_torch``.

    Raises:
        CheckpointError: ``config`` asks for a mean over all modalities, which the fork has not.
    """
    if config.classifier == "gap" and len(config.modalities) > 1:
        raise CheckpointError(
            "classifier must be 'gap_per_modality' for weights of the AV-MAE fork, whose gap is "
            "that, got 'gap'"
        )
    named = {}
    for path, array in params.items():
        block = _BLOCK.match(path)
        if block and not config.share_encoder:
            owner = block[2] or config.modalities[0]
            rest = path[block.end() :]
            path = f"{block[1]}{_suffix('spectrogram' if owner == 'spec' else owner)}/{rest}"
        named[path.removeprefix(_HEAD)] = array
    for m in config.modalities:
        sines = _sines(config.n_tokens(m), config.hidden_size)
        path = f"Transformer/posembed_input{_suffix(m)}/pos_embedding"
        named[path] = _like(params.get(f"embedding{_suffix(m)}/bias"), sines)
    return named


def _suffix(modality: str) -> str:
    return "" if modality == "rgb" else f"_{modality}"


def _sines(length: int, width: int) -> Tensor:
    """Sines and cosines of the position in turns, periods from 1 to 10,000: ``[1, N, C]``."""
    channels = torch.arange(0, width, 2, dtype=torch.float64)
    angles = torch.arange(length)[:, None] * _LONGEST_PERIOD ** (-channels / width)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).unsqueeze(0)


def _like(array: Any, values: Tensor) -> Any:
    """The values as an array or tensor of the dtype of another, of float32 without one."""
    if isinstance(array, Tensor):
        return values.to(array.dtype)
    narrow = values.float().numpy()  # the fork keeps them in float32
    return narrow if array is None else narrow.astype(array.dtype)
