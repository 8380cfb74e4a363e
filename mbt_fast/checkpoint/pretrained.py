"""Our own format: a directory with ``config.json`` and ``model.safetensors``."""

import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mbt_fast.checkpoint.files import read_safetensors, replacing
from mbt_fast.checkpoint.runs import resolve_run
from mbt_fast.checkpoint.shapes import cast, check_dtypes, check_shapes, expected_shapes
from mbt_fast.checkpoint.wrappers import unwrapped
from mbt_fast.config import MBTConfig
from mbt_fast.errors import CheckpointError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
STAMP = {"format": "mbt_fast", "version": 1}  # in the config file, beside the fields
_MODES = {2: "bilinear", 3: "trilinear"}


def save_pretrained(
    directory: "str | PathLike[str]", config: MBTConfig, state_dict: Mapping[str, Tensor]
) -> None:
    """Write a config and its weights to a directory, which is made if need be.

    Each file is written beside its place and then renamed, the config last.

    Args:
        directory: Where ``config.json`` and ``model.safetensors`` go.
        config: The model.
        state_dict: Exactly the state dict of ``MBT(config)``, all of one floating dtype; norms may
            be in float32 beside a narrower one.

    Raises:
        CheckpointError: The weights do not fit the config, are of several dtypes, or are shares.
        OSError: The directory cannot be written.
    """
    check_shapes(state_dict, expected_shapes(config), "the weights do not fit the config")
    shares = [name for name, tensor in state_dict.items() if hasattr(tensor, "full_tensor")]
    if shares:
        raise CheckpointError(
            f"the weights must be whole, and {shares[0]} is spread over ranks: call full_tensor() "
            "of each on all ranks, and save on one"
        )
    check_dtypes(state_dict, "the weights cannot be saved")
    write_model(directory, {**STAMP, **config.to_dict()}, state_dict)


def write_model(
    directory: "str | PathLike[str]",
    config: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
) -> None:
    """``save_pretrained`` of what has been checked, its config as what JSON can hold."""
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dense = torch.contiguous_format  # cloned, for safetensors refuses tensors that share memory
    tensors = {n: t.detach().cpu().clone(memory_format=dense) for n, t in state_dict.items()}
    text = json.dumps(config, indent=2) + "\n"
    with (
        replacing(directory / CONFIG_FILE) as config_path,
        replacing(directory / WEIGHTS_FILE) as weights_path,
    ):
        config_path.write_text(text, encoding="utf-8")
        save_file(tensors, weights_path)


def load_pretrained(
    directory: "str | PathLike[str]", *, dtype: torch.dtype | None = None, **overrides: Any
) -> tuple[MBTConfig, dict[str, Tensor]]:
    """Read a config and its weights; inverse of ``save_pretrained``.

    Args:
        directory: What ``save_pretrained`` wrote, or a training run; see ``resolve_run``.
        dtype: What the weights are cast to; ``None``: nothing is cast.
        **overrides: Fields of ``MBTConfig`` to change. ``input_size`` and ``patch_size`` may name
            some of the modalities only; where the grid of patches changes, the position embeddings
            are resized.

    Returns:
        The changed config and a state dict that fits it, on CPU.

    Raises:
        CheckpointError: A file is malformed; the weights do not fit their own config or the changed
            one; or they are not floating point, or of several dtypes without ``dtype``. The message
            names the tensors.
        TypeError: An override has the wrong type.
        ValueError: An override is unknown, names an unknown modality, or contradicts the rest.
        OSError: A file cannot be read.
    """
    directory = resolve_run(directory)
    saved = read_config(directory / CONFIG_FILE)
    state_dict = unwrapped(read_safetensors(directory / WEIGHTS_FILE))
    what = f"{directory}: the weights do not fit the config"
    check_shapes(state_dict, expected_shapes(saved), what)
    state_dict = cast(state_dict, dtype)
    check_dtypes(state_dict, f"{directory}: the weights cannot be used")
    config = saved.replace(**overrides)
    state_dict = resize_position_embeddings(state_dict, saved, config)
    check_shapes(state_dict, expected_shapes(config), what)
    return config, state_dict


def resize_position_embeddings(
    state_dict: Mapping[str, Tensor], old_config: MBTConfig, new_config: MBTConfig
) -> dict[str, Tensor]:
    """Fit position embeddings to another grid: linear along each axis, corner to corner.

    Args:
        state_dict: Weights of ``old_config``.
        old_config: The grid that they have.
        new_config: The grid that they get. Modalities of one config only are left alone.

    Returns:
        A new dict; entries that need no change are the same tensors.

    Raises:
        ValueError: A modality changes between video and spectrogram.
    """
    resized = dict(state_dict)
    for m in new_config.modalities:
        if m not in old_config.modalities:
            continue
        old, new = old_config.grid(m), new_config.grid(m)
        if len(old) != len(new):
            raise ValueError(f"input_size[{m!r}] must have {len(old)} sizes as before, got {new}")
        if old != new:
            name = f"embed.{m}.pos_embed"
            cls_entry, patches = state_dict[name].split((old_config.n_cls, math.prod(old)), dim=1)
            grid = resize_grid(patches[0].unflatten(0, old), new)
            resized[name] = torch.cat([cls_entry, grid.flatten(0, -2).unsqueeze(0)], dim=1)
    return resized


def resize_grid(grid: Tensor, size: tuple[int, ...]) -> Tensor:
    """Interpolate linearly along each axis, corner to corner.

    The corners of the new grid are the corners of the old one; an axis of extent 1 takes the first
    entry. This is ``scipy.ndimage.zoom(order=1)``, which the official code uses.

    Args:
        grid: ``[*extents, C]`` with two or three extents, any floating dtype.
        size: The new extents.

    Returns:
        ``[*size, C]`` in the dtype of ``grid``; ``grid`` itself if the size is the same.
    """
    if tuple(grid.shape[:-1]) == tuple(size):
        return grid
    channels_first = grid.movedim(-1, 0).unsqueeze(0)
    wide = channels_first.to(torch.promote_types(grid.dtype, torch.float32))
    resized = F.interpolate(wide, size=tuple(size), mode=_MODES[len(size)], align_corners=True)
    return resized.squeeze(0).movedim(0, -1).to(grid.dtype)


def read_config(path: Path) -> MBTConfig:
    """The config that ``save_pretrained`` wrote.

    Raises:
        CheckpointError: It is malformed.
        OSError: The file cannot be read.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise CheckpointError(f"{path}: must hold a JSON object, got {kind}")
        stamp = {key: values.pop(key, None) for key in STAMP}
        if stamp != STAMP:
            raise CheckpointError(f"{path}: format must be {STAMP}, got {stamp}")
        return MBTConfig.from_dict(values)
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a config of mbt_fast: {error}") from error
