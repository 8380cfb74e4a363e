"""``mbt-fast convert``: weights from one format to another."""

import argparse
import math
from pathlib import Path

from torch import Tensor

from mbt_fast.checkpoint import (
    from_vit,
    infer_config,
    load_pretrained,
    load_scenic,
    load_vit,
    save_pretrained,
    save_scenic,
    scenic_to_torch,
    torch_to_scenic,
)
from mbt_fast.checkpoint.runs import resolve_run
from mbt_fast.checkpoint.vit import BOTTLENECK_INITS, TEMPORAL_INITS
from mbt_fast.cli.convert_config import config_from_flags, parse_overrides
from mbt_fast.config import MBTConfig
from mbt_fast.errors import InputError, as_input_error

HELP = "Convert official, ViT or mbt_fast weights to mbt_fast or official ones."

_RULE = (
    "Formats are guessed from the paths. SOURCE: a directory is mbt_fast; .safetensors, .npz, "
    ".pth, .pt and .bin are vit; .checkpoint, .msgpack and files without a suffix are scenic. "
    "DESTINATION: .checkpoint and .msgpack are scenic; a directory or a path without a suffix is "
    "mbt_fast. Anything else needs --from or --to."
)
_VIT_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
_SCENIC_SUFFIXES = (".checkpoint", ".msgpack")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mbt-fast convert``."""
    parser.epilog = _RULE
    parser.add_argument("source", type=Path, help="the weights to read")
    parser.add_argument("destination", type=Path, help="the directory or file to write")
    parser.add_argument("--from", dest="source_format", choices=("scenic", "vit", "mbt_fast"))
    parser.add_argument("--to", dest="destination_format", choices=("mbt_fast", "scenic"))
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--config", type=Path, metavar="FILE.json", help="fields of MBTConfig, or a scenic config"
    )
    model.add_argument("--model", metavar="NAME", help="a registered model, e.g. mbt_base")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help='change a field of the config; JSON, e.g. input_size={"rgb":[32,224,224]}',
    )
    vit = parser.add_argument_group("from a vit")
    vit.add_argument("--bottleneck-init", choices=BOTTLENECK_INITS, default="position")
    vit.add_argument("--temporal-init", choices=TEMPORAL_INITS, default="central_frame")
    vit.add_argument("--restore-head", action="store_true", help="take the classifier too")


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was written."""
    args.source = resolve_run(args.source)
    source_format = args.source_format or _guess_source(args.source)
    destination_format = args.destination_format or _guess_destination(args.destination)
    with as_input_error():
        config, state_dict = _READERS[source_format](args)
    if destination_format == "scenic":
        save_scenic(torch_to_scenic(state_dict, config), args.destination)
    else:
        save_pretrained(args.destination, config, state_dict)
    count = sum(math.prod(tensor.shape) for tensor in state_dict.values())
    print(f"wrote {args.destination} ({destination_format}): {count:,} parameters")
    return 0


def _guess_source(path: Path) -> str:
    if path.is_dir():
        return "mbt_fast"
    if path.suffix in _VIT_SUFFIXES:
        return "vit"
    if path.suffix in ("", *_SCENIC_SUFFIXES):
        return "scenic"
    raise InputError(f"--from must be given, for the suffix of {path.name} does not tell it")


def _guess_destination(path: Path) -> str:
    if path.suffix in _SCENIC_SUFFIXES:
        return "scenic"
    if path.is_dir() or not path.suffix:
        return "mbt_fast"
    raise InputError(f"--to must be given, for the suffix of {path.name} does not tell it")


def _read_native(args: argparse.Namespace) -> tuple[MBTConfig, dict[str, Tensor]]:
    if args.config or args.model:
        raise InputError("--config and --model must be left out for mbt_fast weights; use --set")
    return load_pretrained(args.source, **parse_overrides(args.overrides))


def _read_scenic(args: argparse.Namespace) -> tuple[MBTConfig, dict[str, Tensor]]:
    params = load_scenic(args.source)
    config = config_from_flags(args)
    if config is None:
        config, assumptions = infer_config(params, **parse_overrides(args.overrides))
        for assumption in assumptions:
            print(assumption)
    return config, scenic_to_torch(params, config)


def _read_vit(args: argparse.Namespace) -> tuple[MBTConfig, dict[str, Tensor]]:
    config = config_from_flags(args)
    if config is None:
        raise InputError("--config or --model must be given for a vit, which is not an MBT yet")
    return config, from_vit(
        load_vit(args.source),
        config,
        bottleneck_init=args.bottleneck_init,
        temporal_init=args.temporal_init,
        restore_head=args.restore_head,
    )


_READERS = {"mbt_fast": _read_native, "scenic": _read_scenic, "vit": _read_vit}
