"""The weights that ``mbt-fast convert`` reads: which format a path has, and its reader."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mbt_fast.checkpoint import (
    from_vit,
    infer_config,
    load_pretrained,
    load_scenic,
    scenic_to_torch,
)
from mbt_fast.checkpoint.files import check_not_orbax
from mbt_fast.checkpoint.huggingface import read_config as read_hugging_face_config
from mbt_fast.checkpoint.shapes import cast, check_dtypes, check_shapes, expected_shapes
from mbt_fast.checkpoint.vit_files import VIT_SUFFIXES, ast_as_vit, has_one_channel, read_named
from mbt_fast.cli.convert_config import config_from_flags, parse_overrides
from mbt_fast.config import MBTConfig
from mbt_fast.errors import InputError

SCENIC_SUFFIXES = (".checkpoint", ".msgpack")
DTYPES = ("float16", "bfloat16", "float32", "float64")

_INITS = ("bottleneck_init", "temporal_init")

Converted = tuple[MBTConfig, dict[str, Tensor]]


def guess_format(path: Path) -> str:
    """The format that a path tells, by the rule in ``--help``.

    Raises:
        InputError: It tells none, or one that is not read.
    """
    if path.is_dir():
        check_not_orbax(path)
        return "vit" if read_hugging_face_config(path) else "mbt_fast"
    if path.suffix in VIT_SUFFIXES:
        return "vit"
    if path.suffix in ("", *SCENIC_SUFFIXES):
        return "scenic"
    raise InputError(f"--from must be given, for the suffix of {path.name} does not tell it")


def _dtype(args: argparse.Namespace) -> torch.dtype | None:
    return getattr(torch, args.dtype) if args.dtype else None


def _read_native(args: argparse.Namespace) -> Converted:
    if args.source.is_file():
        return _named_as_ours(args, cast(read_named(args.source), _dtype(args)))
    if args.config or args.model:
        raise InputError("--config and --model must be left out for mbt_fast weights; use --set")
    _refuse_vit_flags(args)
    overrides = parse_overrides(args.overrides)
    return load_pretrained(args.source, dtype=_dtype(args), **overrides)


def _named_as_ours(args: argparse.Namespace, state_dict: dict[str, Tensor]) -> Converted:
    """Weights of an ``MBT`` from somebody's own training loop, which keeps no config of ours."""
    _refuse_vit_flags(args)
    config = _config_of(args, "the weights of an MBT alone")
    check_shapes(state_dict, expected_shapes(config), "the weights do not fit the config")
    check_dtypes(state_dict, "the weights cannot be used without --dtype")
    return config, state_dict


def _config_of(args: argparse.Namespace, what: str) -> MBTConfig:
    config = config_from_flags(args)
    if config is None:
        raise InputError(f"--config or --model must be given for {what}")
    return config


def _read_scenic(args: argparse.Namespace) -> Converted:
    _refuse_vit_flags(args)
    params = load_scenic(args.source)
    config = config_from_flags(args)
    if config is None:
        config, assumptions = infer_config(params, **parse_overrides(args.overrides))
        for assumption in assumptions:
            print(assumption)
    return config, cast(scenic_to_torch(params, config), _dtype(args))


def _refuse_vit_flags(args: argparse.Namespace) -> None:
    """The source is an MBT, which has all that they would choose."""
    given = {"--encoder": args.encoders, "--restore-head": args.restore_head}
    given |= {f"--{name.replace('_', '-')}": getattr(args, name) for name in _INITS}
    for flag, value in given.items():
        if value:
            raise InputError(f"{flag} must be left out unless the source is a ViT or an AST")


def _read_vit(args: argparse.Namespace) -> Converted:
    tensors = read_named(args.source)
    if any(name.startswith("embed.") and name.endswith(".pos_embed") for name in tensors):
        return _named_as_ours(args, cast(tensors, _dtype(args)))
    config = _config_of(args, "a vit, which is not an MBT yet")
    state_dict = _start(args, args.source, tensors, config, args.restore_head)
    for item in args.encoders:
        state_dict |= _encoder(args, item, config)
    return config, state_dict


def _encoder(args: argparse.Namespace, item: str, config: MBTConfig) -> dict[str, Tensor]:
    """Embedding and blocks of one modality, from the ViT or AST that ``MODALITY=PATH`` names."""
    modality, _, path = item.partition("=")
    if modality not in config.modalities or not path or config.share_encoder:
        raise InputError(
            "--encoder must be MODALITY=PATH with a modality that has an encoder of its own, "
            f"got {item!r}"
        )
    alone = config.replace(modalities=(modality,))
    state_dict = _start(args, Path(path), read_named(path), alone, False)
    return {name: tensor for name, tensor in state_dict.items() if f".{modality}." in name}


def _start(
    args: argparse.Namespace,
    path: Path,
    tensors: dict[str, Tensor],
    config: MBTConfig,
    restore_head: bool,
) -> dict[str, Tensor]:
    """An MBT that starts from a ViT or, for spectrograms alone, from an AST."""
    grid = None
    if has_one_channel(tensors):
        videos = [m for m in config.modalities if len(config.input_size[m]) == 3]
        if videos:
            raise InputError(
                "modalities must be spectrograms for a ViT with one input channel, such as an AST, "
                f"got {', '.join(videos)}; "
                "choose by --set 'modalities=[...]', or give it to --encoder beside a ViT"
            )
        tensors, grid = ast_as_vit(tensors, path)
        print("left out: the distillation token of the AST, and its classifier")
    _check_heads(path, config)
    return from_vit(
        cast(tensors, _dtype(args)),
        config,
        restore_head=restore_head,
        grid=grid,
        **{name: getattr(args, name) for name in _INITS if getattr(args, name)},
    )


def _check_heads(path: Path, config: MBTConfig) -> None:
    """Compare with the number of heads, which weights do not show and a config does."""
    heads = read_hugging_face_config(path).get("num_attention_heads")
    if heads not in (None, config.num_heads):
        raise InputError(
            f"num_heads must be {json.dumps(heads)} as in the config of {path}, "
            f"got {config.num_heads}"
        )


READERS: dict[str, Callable[[argparse.Namespace], Converted]] = {
    "mbt_fast": _read_native,
    "scenic": _read_scenic,
    "vit": _read_vit,
}
