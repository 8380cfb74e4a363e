"""Image ViTs and ASTs: the files and directories in which people have them.

Sources: timm for the names; ``src/models/ast_models.py`` of the AST repository for those of its
own files.
"""

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from mbt_fast.checkpoint import huggingface
from mbt_fast.checkpoint.files import read_safetensors
from mbt_fast.checkpoint.google import read_npz
from mbt_fast.checkpoint.torch_files import SUFFIXES, read_torch
from mbt_fast.checkpoint.wrappers import unwrapped
from mbt_fast.errors import CheckpointError

VIT_SUFFIXES = (".safetensors", ".npz", *SUFFIXES)

_KERNEL = "patch_embed.proj.weight"
_MEL_ROWS = 12  # of every published AST: 128 bins, patches of 16, a stride of 10
_AST_HEADS = ("head.", "head_dist.", "mlp_head.", "pre_logits.")


def read_named(path: "str | PathLike[str]") -> dict[str, Tensor]:
    """The tensors of a file or a directory of Hugging Face, under timm's names if it is a ViT.

    Arguments and errors as in ``load_vit``.
    """
    path = Path(path)
    if path.is_dir():
        tensors = huggingface.read_directory(path)
    elif path.suffix == ".safetensors":
        tensors = read_safetensors(path)
    elif path.suffix == ".npz":
        tensors = read_npz(path)
    elif path.suffix in SUFFIXES:
        tensors = read_torch(path)
    else:
        raise CheckpointError(
            f"a ViT file must end in {', '.join(VIT_SUFFIXES)}, got {path.name!r}"
        )
    try:
        tensors = unwrapped(tensors)
        if huggingface.is_hugging_face(tensors):
            tensors = huggingface.hugging_face_to_timm(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return tensors


def load_vit(path: "str | PathLike[str]") -> dict[str, Tensor]:
    """Read an image ViT as a state dict with timm's names.

    Args:
        path: ``.safetensors``; ``.npz`` with the names of Google's release, AugReg or big_vision;
            ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` of Lightning or ``.pth.tar``, with tensors at top
            level or under ``"model"``, ``"state_dict"``, ``"model_state_dict"`` or ``"module"``; or
            a directory of Hugging Face. Nothing in a file is executed. Prefixes of
            ``DataParallel``, ``torch.compile``, FSDP and Lightning are taken off, and the names of
            Hugging Face's ViT become timm's.

    Returns:
        Tensors on CPU; names that are not known are as the file has them.

    Raises:
        CheckpointError: The suffix is unknown, the file is malformed, holds other classes than
            ``argparse.Namespace``, paths and numpy's scalars, or is an AST; see ``load_ast``.
        OSError: The file cannot be read.
    """
    tensors = read_named(path)
    if has_one_channel(tensors):
        raise CheckpointError(
            f"{path}: a ViT of images must have three input channels, got one, as an AST has; "
            "load_ast reads it as such"
        )
    return tensors


def load_ast(
    path: "str | PathLike[str]", grid: tuple[int, int] | None = None
) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Read an Audio Spectrogram Transformer as a ViT that ``from_vit`` takes for spectrograms.

    Its axes are turned from (mel, time) to (time, mel), and its one channel is given to each of
    three by a third. An MBT has one CLS token and a head without norm, so the distillation token
    and the classifier are left out.

    Args:
        path: A file, or a directory of Hugging Face, as in ``load_vit``; names are those of the
            AST repository or of Hugging Face.
        grid: Positions along (time, mel). By default those that the ``config.json`` of Hugging
            Face tells, in ``path`` or beside a file with the name that it gives; without it 12
            along mel, as of all published ASTs.

    Returns:
        State dict with timm's names on CPU, and the grid.

    Raises:
        CheckpointError: As in ``load_vit``; or no AST; or the grid does not fit.
        OSError: The file cannot be read.
    """
    return ast_as_vit(read_named(path), Path(path), grid)


def ast_as_vit(
    tensors: dict[str, Tensor], path: Path, grid: tuple[int, int] | None = None
) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """``load_ast`` of what has been read from ``path``."""
    tensors = {name.removeprefix("v."): tensor for name, tensor in tensors.items()}
    if not has_one_channel(tensors):
        raise CheckpointError(f"{path}: an AST must have {_KERNEL} with one channel")
    tensors = {n: t for n, t in tensors.items() if not n.startswith(_AST_HEADS)}
    n_special = 1 + ("dist_token" in tensors)
    tensors.pop("dist_token", None)
    positions = tensors.get("pos_embed", torch.empty(0))
    if positions.ndim != 3:
        raise CheckpointError(
            f"{path}: pos_embed of an AST must be [1, positions, C], got {list(positions.shape)}"
        )
    n_patches = positions.shape[1] - n_special
    time, mel = grid or _ast_grid(path, n_patches)
    if time * mel != n_patches:
        raise CheckpointError(f"{path}: grid must have {n_patches} positions, got {(time, mel)}")
    turned = positions[0, n_special:].unflatten(0, (mel, time)).transpose(0, 1).flatten(0, 1)
    tensors["pos_embed"] = torch.cat([positions[:, :1], turned.unsqueeze(0)], dim=1)
    tensors[_KERNEL] = tensors[_KERNEL].transpose(2, 3).expand(-1, 3, -1, -1) / 3
    return tensors, (time, mel)


def has_one_channel(tensors: dict[str, Tensor]) -> bool:
    """Whether weights with timm's names take one channel: of spectrograms, or of grey images."""
    kernel = tensors.get(_KERNEL, tensors.get(f"v.{_KERNEL}"))
    return kernel is not None and kernel.ndim == 4 and kernel.shape[1] == 1


def _ast_grid(path: Path, n_patches: int) -> tuple[int, int]:
    """Positions along (time, mel) as the config tells, or as published."""
    config = huggingface.read_config(path)
    try:
        extents = config["max_length"], config["num_mel_bins"]
        strides = config["time_stride"], config["frequency_stride"]
        patch = config["patch_size"]
        time, mel = ((e - patch) // s + 1 for e, s in zip(extents, strides, strict=True))
    except (KeyError, TypeError):
        return n_patches // _MEL_ROWS, _MEL_ROWS
    return time, mel
