"""``mbt-fast convert``: weights from one format to another."""

import argparse
import math
from pathlib import Path

from mbt_fast.checkpoint import save_pretrained, save_scenic, torch_to_scenic
from mbt_fast.checkpoint.runs import resolve_run
from mbt_fast.checkpoint.vit import BOTTLENECK_INITS, TEMPORAL_INITS
from mbt_fast.cli.convert_sources import DTYPES, READERS, SCENIC_SUFFIXES, guess_format
from mbt_fast.errors import InputError, as_input_error

HELP = "Convert official, ViT or mbt_fast weights to mbt_fast or official ones."

_RULE = (
    "Formats are guessed from the paths. SOURCE: a directory is vit if its config.json is of "
    "Hugging Face, else mbt_fast; .safetensors, .npz, .pth, .pt, .bin, .ckpt and .pth.tar are vit, "
    "or the weights of an MBT, which their names tell; .checkpoint, .msgpack and files without a "
    "suffix are scenic. DESTINATION: .checkpoint and .msgpack are scenic; a directory or a path "
    "without a suffix is mbt_fast. Anything else needs --from or --to."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mbt-fast convert``."""
    parser.epilog = _RULE
    parser.add_argument("source", type=Path, help="the weights to read")
    parser.add_argument("destination", type=Path, help="the directory or file to write")
    parser.add_argument("--from", dest="source_format", choices=tuple(READERS))
    parser.add_argument("--to", dest="destination_format", choices=("mbt_fast", "scenic"))
    parser.add_argument("--dtype", choices=DTYPES, help="cast the weights (default: as they are)")
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
        help="change a field of the config, or a key of a scenic config; JSON, "
        'e.g. input_size={"rgb":[32,224,224]}',
    )
    vit = parser.add_argument_group("from a vit")
    vit.add_argument("--bottleneck-init", choices=BOTTLENECK_INITS, help="default: position")
    vit.add_argument("--temporal-init", choices=TEMPORAL_INITS, help="default: central_frame")
    vit.add_argument("--restore-head", action="store_true", help="take the classifier too")
    vit.add_argument(
        "--encoder",
        dest="encoders",
        action="append",
        default=[],
        metavar="MODALITY=PATH",
        help="start one modality from another ViT or AST, e.g. spectrogram=ast/",
    )


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was written."""
    args.source = resolve_run(args.source)
    source_format = args.source_format or guess_format(args.source)
    destination_format = args.destination_format or _guess_destination(args.destination)
    with as_input_error():
        config, state_dict = READERS[source_format](args)
    if destination_format == "scenic":
        save_scenic(torch_to_scenic(state_dict, config), args.destination)
    else:
        save_pretrained(args.destination, config, state_dict)
    count = sum(math.prod(tensor.shape) for tensor in state_dict.values())
    print(f"wrote {args.destination} ({destination_format}): {count:,} parameters")
    return 0


def _guess_destination(path: Path) -> str:
    if path.suffix in SCENIC_SUFFIXES:
        return "scenic"
    if path.is_dir() or not path.suffix:
        return "mbt_fast"
    raise InputError(f"--to must be given, for the suffix of {path.name} does not tell it")
