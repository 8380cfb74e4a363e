"""From an image ViT to an MBT, as the official code starts its training.

Source: ``scenic/projects/mbt/model_utils.py``; names are timm's.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from mbt_fast.checkpoint.pretrained import resize_grid
from mbt_fast.checkpoint.scenic import cls_path
from mbt_fast.checkpoint.shapes import (
    check_dtypes,
    check_shapes,
    expected_shapes,
    shortened,
    vit_shapes,
)
from mbt_fast.config import MBTConfig
from mbt_fast.errors import CheckpointError

BOTTLENECK_INITS = ("position", "normal")
TEMPORAL_INITS = ("central_frame", "average")

_BOTTLENECK_STD = 0.02
_HEAD = ("head.weight", "head.bias")


def from_vit(
    state_dict: Mapping[str, Tensor],
    config: MBTConfig,
    *,
    bottleneck_init: str = "position",
    temporal_init: str = "central_frame",
    restore_head: bool = False,
    grid: tuple[int, int] | None = None,
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
        grid: Rows and columns of the position embeddings; square if it is not given. See
            ``load_ast``.
        generator: Source, on CPU, of the ``"normal"`` numbers.

    Returns:
        A complete state dict of ``MBT(config)``, in the dtypes of the ViT; no two entries share
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
    grid = grid or _square(vit["pos_embed"].shape[1])
    _check_grid(vit["pos_embed"], grid)
    check_dtypes(vit, "the weights of the ViT cannot be used")

    mbt: dict[str, Tensor] = {}
    for m in config.modalities:
        mbt |= _embedding(vit, m, config, temporal_init, grid)
    if config.n_slots and bottleneck_init == "position":
        mbt["bottleneck_tokens"] = _bottlenecks(vit["pos_embed"], config, grid)
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
        mbt[name] = vit[name] if restore_head else vit["pos_embed"].new_zeros(expected[name])
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
    if depth == 0:
        raise CheckpointError(
            "a ViT must have blocks, with the names of timm, Google or Hugging Face, "
            f"got {shortened(vit)}"
        )
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


def _square(n_positions: int) -> tuple[int, int]:
    """The grid of a square image beside CLS."""
    side = math.isqrt(n_positions - 1)
    if side < 1 or side * side != n_positions - 1:
        raise CheckpointError(f"pos_embed must hold CLS and a square grid, got {n_positions} rows")
    return side, side


def _check_grid(positions: Tensor, grid: tuple[int, int]) -> None:
    if math.prod(grid) != positions.shape[1] - 1:
        raise CheckpointError(
            f"grid must have the {positions.shape[1] - 1} positions of the ViT, got {grid}"
        )


def _embedding(
    vit: Mapping[str, Tensor],
    m: str,
    config: MBTConfig,
    temporal_init: str,
    grid: tuple[int, int],
) -> dict[str, Tensor]:
    """CLS token, position embeddings and patch embedding of one modality."""
    cls_token, kernel = vit["cls_token"], vit["patch_embed.proj.weight"]
    owns_cls = cls_path(m, config) == "cls"
    cls = {f"embed.{m}.cls_token": cls_token if owns_cls else torch.zeros_like(cls_token)}
    return {
        **(cls if config.n_cls else {}),
        f"embed.{m}.pos_embed": _positions(vit["pos_embed"], grid, config.grid(m), config.n_cls),
        f"embed.{m}.proj.weight": _patch_kernel(kernel, config.patch_size[m], temporal_init),
        f"embed.{m}.proj.bias": vit["patch_embed.proj.bias"],
    }


def _positions(positions: Tensor, old: tuple[int, int], new: tuple[int, ...], n_cls: int) -> Tensor:
    """Position embeddings of one modality: CLS, then the resized grid, repeated over time."""
    frames = new[0] if len(new) == 3 else 1
    resized = resize_grid(positions[0, 1:].unflatten(0, old), new[-2:]).flatten(0, 1)
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


def _bottlenecks(positions: Tensor, config: MBTConfig, old: tuple[int, int]) -> Tensor:
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
    grid = resize_grid(positions[0, 1:].unflatten(0, old), (rows, columns)).flatten(0, 1)
    return torch.cat([cls_entry, grid.unsqueeze(0)], dim=1)
