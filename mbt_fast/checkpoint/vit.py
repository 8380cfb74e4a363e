"""Image ViTs: the files in which they are published, and from a ViT to an MBT.

Sources: ``scenic/projects/mbt/model_utils.py`` for the way from ViT to MBT; timm, and Google's
releases (AugReg, big_vision), for the names.
"""

import math
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from mbt_fast.checkpoint.files import read_safetensors
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
from mbt_fast.checkpoint.pretrained import resize_grid
from mbt_fast.checkpoint.scenic import cls_path
from mbt_fast.checkpoint.shapes import (
    Shape,
    check_dtypes,
    check_shapes,
    expected_shapes,
    vit_shapes,
)
from mbt_fast.config import MBTConfig
from mbt_fast.errors import CheckpointError

BOTTLENECK_INITS = ("position", "normal")
TEMPORAL_INITS = ("central_frame", "average")

_BOTTLENECK_STD = 0.02
_HEAD = ("head.weight", "head.bias")

_WRAPPERS = ("model", "state_dict")
_PARALLEL = "module."
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


def from_vit(
    state_dict: Mapping[str, Tensor],
    config: MBTConfig,
    *,
    bottleneck_init: str = "position",
    temporal_init: str = "central_frame",
    restore_head: bool = False,
    generator: Generator | None = None,
) -> dict[str, Tensor]:
    """Initialise an MBT from an image ViT as the official code does for fine-tuning.

    Every modality gets the ViT's blocks, and all share its last norm. Its grid of position
    embeddings is resized corner to corner: for video to the frame's grid and then repeated over
    time, for a spectrogram to (time, mel). The entry of CLS stays at index 0. The ViT's CLS token
    goes to RGB, or to an only modality; the other CLS tokens are zero, as in the official code.

    Args:
        state_dict: A plain ViT with timm's names, all of one floating dtype: one CLS token,
            position embeddings ``[1, 1 + g * g, C]``, a patch kernel ``[C, 3, height, width]``.
            ``pre_logits.*`` and ``head.*`` are dropped; a distilled ViT (``dist_token``,
            ``head_dist.*``) and one with ``fc_norm.*`` or layer scale are refused, for an MBT has
            no place for these weights.
        config: The MBT; width, depth and patches must be the ViT's.
        bottleneck_init: ``"position"``: the ViT's position embedding of CLS, then its grid resized
            to ``floor(sqrt(P - 1))`` rows (for ``P = 5`` the four corners). ``"normal"``:
            N(0, 0.02^2), as in the paper.
        temporal_init: ``"central_frame"`` puts the patch kernel at temporal index ``t // 2`` of a
            tubelet and zeros elsewhere; ``"average"`` repeats it and divides by ``t``.
        restore_head: Take the classifier too, which must not stand behind ``pre_logits``;
            otherwise it is zero.
        generator: Source, on CPU, of the ``"normal"`` numbers.

    Returns:
        A complete state dict of ``MBT(config)``, in the dtype of the ViT; no two entries share
        memory.

    Raises:
        CheckpointError: The weights are not such a ViT, do not fit the config, are not floating
            point, or of several dtypes.
        ValueError: An option is unknown, or ``"position"`` cannot give this many bottlenecks.
    """
    _check_option("bottleneck_init", bottleneck_init, BOTTLENECK_INITS)
    _check_option("temporal_init", temporal_init, TEMPORAL_INITS)
    vit = _without_head(state_dict, restore_head)
    _check_vit(vit, config, restore_head)
    check_dtypes(vit, "the weights of the ViT cannot be used")

    mbt: dict[str, Tensor] = {}
    for m in config.modalities:
        mbt |= _embedding(vit, m, config, temporal_init)
    if config.n_slots and bottleneck_init == "position":
        mbt["bottleneck_tokens"] = _bottlenecks(vit["pos_embed"], config)
    elif config.n_slots:
        drawn = torch.randn(1, config.n_slots, config.hidden_size, generator=generator)
        mbt["bottleneck_tokens"] = (_BOTTLENECK_STD * drawn).to(vit["pos_embed"])
    expected = expected_shapes(config)
    for name in expected:
        if name.startswith("blocks."):
            _, layer, _, part = name.split(".", 3)
            mbt[name] = vit[f"blocks.{layer}.{part}"]
    mbt["norm.weight"], mbt["norm.bias"] = vit["norm.weight"], vit["norm.bias"]
    for name in _HEAD:
        mbt[name] = vit[name] if restore_head else vit["norm.bias"].new_zeros(expected[name])
    check_shapes(mbt, expected, "the result does not fit the config")
    dense = torch.contiguous_format
    return {name: tensor.detach().clone(memory_format=dense) for name, tensor in mbt.items()}


def _without_head(state_dict: Mapping[str, Tensor], restore_head: bool) -> dict[str, Tensor]:
    """What an MBT takes from a ViT: nothing of ``pre_logits``, the classifier if asked."""
    pre_logits = [name for name in state_dict if name.startswith("pre_logits.")]
    if pre_logits and restore_head:
        raise CheckpointError(
            f"restore_head needs a ViT whose head reads the last norm, got {pre_logits[0]}"
        )
    dropped = set(pre_logits).union(() if restore_head else _HEAD)
    return {name: tensor for name, tensor in state_dict.items() if name not in dropped}


def _check_option(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}")


def _check_vit(vit: Mapping[str, Tensor], config: MBTConfig, restore_head: bool) -> None:
    """Compare depth and width first, then every name and shape, then what only a grid can tell."""
    depth = len({match[1] for name in vit if (match := re.match(r"blocks\.(\d+)\.", name))})
    if depth != config.num_layers:
        raise CheckpointError(
            f"num_layers must be the depth of the ViT = {depth}, got {config.num_layers}"
        )
    positions = tuple(getattr(vit.get("pos_embed"), "shape", ()))
    if len(positions) != 3:
        raise CheckpointError(
            f"pos_embed of the ViT must be [1, 1 + g * g, C], got {list(positions) or 'none'}"
        )
    _, n_positions, width = positions
    if width != config.hidden_size:
        raise CheckpointError(
            f"hidden_size must be the width of the ViT = {width}, got {config.hidden_size}"
        )
    patches = {tuple(config.patch_size[m][-2:]) for m in config.modalities}
    if len(patches) > 1:
        raise CheckpointError(
            f"patch_size must be one (height, width) for a ViT, got {sorted(patches)}"
        )
    expected = vit_shapes(
        config.hidden_size, config.mlp_dim, config.num_layers, patches.pop(), n_positions
    )
    if restore_head:
        expected |= {name: expected_shapes(config)[name] for name in _HEAD}
    check_shapes(vit, expected, "the weights are not a plain ViT that fits the config")
    side = math.isqrt(n_positions - 1)
    if side < 1 or side * side != n_positions - 1:
        raise CheckpointError(f"pos_embed must hold CLS and a square grid, got {n_positions} rows")


def _embedding(
    vit: Mapping[str, Tensor], m: str, config: MBTConfig, temporal_init: str
) -> dict[str, Tensor]:
    """CLS token, position embeddings and patch embedding of one modality."""
    cls_token, kernel = vit["cls_token"], vit["patch_embed.proj.weight"]
    owns_cls = cls_path(m, config) == "cls"
    cls = {f"embed.{m}.cls_token": cls_token if owns_cls else torch.zeros_like(cls_token)}
    return {
        **(cls if config.n_cls else {}),
        f"embed.{m}.pos_embed": _positions(vit["pos_embed"], config.grid(m), config.n_cls),
        f"embed.{m}.proj.weight": _patch_kernel(kernel, config.patch_size[m], temporal_init),
        f"embed.{m}.proj.bias": vit["patch_embed.proj.bias"],
    }


def _square_grid(positions: Tensor) -> Tensor:
    """``[1, 1 + g * g, C]`` -> ``[g, g, C]``, without CLS."""
    side = math.isqrt(positions.shape[1] - 1)
    return positions[0, 1:].unflatten(0, (side, side))


def _positions(positions: Tensor, grid: tuple[int, ...], n_cls: int) -> Tensor:
    """Position embeddings of one modality: CLS, then the resized grid, repeated over time."""
    frames = grid[0] if len(grid) == 3 else 1
    resized = resize_grid(_square_grid(positions), grid[-2:]).flatten(0, 1)
    return torch.cat([positions[:, :n_cls], resized.repeat(frames, 1).unsqueeze(0)], dim=1)


def _patch_kernel(kernel: Tensor, patch: tuple[int, ...], temporal_init: str) -> Tensor:
    """``[C, 3, height, width]``, with a time axis at dimension 2 for video."""
    if len(patch) == 2:
        return kernel
    frames = patch[0]
    if temporal_init == "average":
        return kernel.unsqueeze(2).expand(-1, -1, frames, -1, -1) / frames
    inflated = kernel.new_zeros(*kernel.shape[:2], *patch)
    inflated[:, :, frames // 2] = kernel
    return inflated


def _bottlenecks(positions: Tensor, config: MBTConfig) -> Tensor:
    """Position embeddings as bottleneck tokens: of CLS, if the model has it, then of the grid."""
    cls_entry, count = positions[:, : config.n_cls], config.n_slots - config.n_cls
    if count == 0:
        return cls_entry
    rows = math.isqrt(count)
    columns, rest = divmod(count, rows)
    if rest:
        multiple = f"{'1 + ' if config.n_cls else ''}a multiple of {rows}"
        raise ValueError(
            f"n_bottlenecks must be {multiple} for bottleneck_init='position', "
            f'got {config.n_slots}; bottleneck_init="normal" takes any number'
        )
    grid = resize_grid(_square_grid(positions), (rows, columns)).flatten(0, 1)
    return torch.cat([cls_entry, grid.unsqueeze(0)], dim=1)


def load_vit(path: "str | PathLike[str]") -> dict[str, Tensor]:
    """Read an image ViT as a state dict with timm's names.

    Args:
        path: ``.safetensors``; ``.npz`` with the names of Google's release, AugReg or big_vision;
            or ``.pth``, ``.pt``, ``.bin`` with tensors alone, at top level or under ``"model"`` or
            ``"state_dict"``. Nothing in the file is executed. The prefix ``module.`` of
            ``DataParallel`` is taken off.

    Returns:
        Tensors on CPU; those of an ``.npz`` under timm's names, any others as the file has them.

    Raises:
        CheckpointError: The suffix is unknown, the file is malformed, holds more than tensors, or
            is not a ViT.
        OSError: The file cannot be read.
    """
    path = Path(path)
    readers = {".safetensors": read_safetensors, ".npz": _read_npz}
    readers |= dict.fromkeys((".pth", ".pt", ".bin"), _read_pickle)
    if path.suffix not in readers:
        raise CheckpointError(f"a ViT file must end in {', '.join(readers)}, got {path.name!r}")
    return _without_prefix(readers[path.suffix](path))


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names inside the module that ``DataParallel`` wraps, if it wraps all of them."""
    if not all(name.startswith(_PARALLEL) for name in tensors):
        return tensors
    return {name.removeprefix(_PARALLEL): tensor for name, tensor in tensors.items()}


def _read_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError:
        raise
    except Exception as error:  # a malformed archive may raise anything
        raise CheckpointError(f"{path}: not a whole npz file of arrays alone") from error
    try:
        return google_to_timm(arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a malformed pickle may raise anything
        raise CheckpointError(
            f"{path}: not a whole file of tensors alone, and nothing else is loaded"
        ) from error
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(map(torch.is_tensor, found.values())):
        raise CheckpointError(
            f"{path}: must hold tensors by name, alone or under model, state_dict"
        )
    return dict(found)


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
