"""``mbt-fast convert``: weights from one format to another."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from mbt_fast.checkpoint.overrides import changed, check_sizes
from mbt_fast.checkpoint.vit import BOTTLENECK_INITS, TEMPORAL_INITS
from mbt_fast.errors import InputError
from mbt_fast.models.config import MBTConfig
from mbt_fast.models.scenic import modalities_of

HELP = "Convert official, ViT or mbt_fast weights to mbt_fast or official ones."

_RULE = (
    "Formats are guessed from the paths. SOURCE: a directory is mbt_fast; .safetensors, .npz, "
    ".pth, .pt and .bin are vit; .checkpoint, .msgpack and files without a suffix are scenic. "
    "DESTINATION: .checkpoint and .msgpack are scenic; a directory or a path without a suffix is "
    "mbt_fast. Anything else needs --from or --to."
)
_VIT_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
_SCENIC_SUFFIXES = (".checkpoint", ".msgpack")
_EXAMPLE_SIZES = {"rgb": (32, 224, 224), "spectrogram": (800, 128)}  # the released checkpoints'


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
    source_format = args.source_format or _guess_source(args.source)
    destination_format = args.destination_format or _guess_destination(args.destination)
    overrides = _parse_overrides(args.overrides)
    config, state_dict = _READERS[source_format](args, overrides)
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


def _parse_overrides(items: list[str]) -> dict[str, Any]:
    overrides = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not key or not equals:
            raise InputError(f"--set must be KEY=VALUE, got {item!r}")
        try:
            overrides[key] = json.loads(text)
        except ValueError:
            overrides[key] = text
    return overrides


def _read_native(
    args: argparse.Namespace, overrides: dict[str, Any]
) -> tuple[MBTConfig, dict[str, Tensor]]:
    if args.config or args.model:
        raise InputError("--config and --model must be left out for mbt_fast weights; use --set")
    return _checked(load_pretrained, args.source, **overrides)


def _read_scenic(
    args: argparse.Namespace, overrides: dict[str, Any]
) -> tuple[MBTConfig, dict[str, Tensor]]:
    params = load_scenic(args.source)
    config = _config(args, overrides)
    if config is None:
        config, assumptions = _checked(infer_config, params, **overrides)
        for assumption in assumptions:
            print(assumption)
    return config, scenic_to_torch(params, config)


def _read_vit(
    args: argparse.Namespace, overrides: dict[str, Any]
) -> tuple[MBTConfig, dict[str, Tensor]]:
    config = _config(args, overrides)
    if config is None:
        raise InputError("--config or --model must be given for a vit, which is not an MBT yet")
    options = {
        "bottleneck_init": args.bottleneck_init,
        "temporal_init": args.temporal_init,
        "restore_head": args.restore_head,
    }
    return config, _checked(from_vit, load_vit(args.source), config, **options)


_READERS = {"mbt_fast": _read_native, "scenic": _read_scenic, "vit": _read_vit}


def _config(args: argparse.Namespace, overrides: dict[str, Any]) -> MBTConfig | None:
    """The config that the flags name, if they name one."""
    if args.model:
        from mbt_fast.models.registry import config_for

        return _checked(config_for, args.model, **overrides)
    if args.config:
        return _checked(_read_config, args.config, overrides)
    return None


def _read_config(path: Path, overrides: dict[str, Any]) -> MBTConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(values, Mapping):
        raise InputError(f"{path} must hold a JSON object, got {type(values).__name__}")
    model = values.get("model", values)
    if not isinstance(model, Mapping):
        raise InputError(f"{path}: model must be a mapping, got {model!r}")
    if "modality_fusion" not in model:
        stamp = ("format", "version")
        fields = {key: value for key, value in values.items() if key not in stamp}
        return changed(MBTConfig.from_dict(fields), overrides)
    modalities = modalities_of(model)
    check_sizes(overrides, modalities)
    sizes = {**_scenic_sizes(values), **overrides.get("input_size", {})}
    unknown = [m for m in modalities if m not in sizes]
    if unknown:
        example = json.dumps({m: _EXAMPLE_SIZES[m] for m in unknown}, separators=(",", ":"))
        raise InputError(
            f"{path} does not tell the input size of {' and '.join(unknown)}; give it by --set, "
            f"such as --set 'input_size={example}'"
        )
    scenic = MBTConfig.from_scenic({**values, **model}, _shapes(sizes))
    rest = {key: value for key, value in overrides.items() if key != "input_size"}
    return changed(scenic, rest)


def _shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of one example each, with its three channels."""
    for m, size in sizes.items():
        if not isinstance(size, Sequence) or isinstance(size, str):
            raise InputError(f"input_size[{m!r}] must be a list, got {size!r}")
    return {m: (*size, 3) for m, size in sizes.items()}


def _scenic_sizes(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Input sizes from the ``dataset_configs`` of a whole scenic config, where it has them."""
    data = values.get("dataset_configs") or {}
    if not isinstance(data, Mapping):
        raise InputError(f"dataset_configs must be a mapping, got {data!r}")
    sizes: dict[str, tuple[int, ...]] = {}
    if "num_frames" in data and "crop_size" in data:
        sizes["rgb"] = (data["num_frames"], data["crop_size"], data["crop_size"])
    if "num_spec_frames" in data and "spec_shape" in data:
        count, shape = data["num_spec_frames"], data["spec_shape"]
        if type(count) is not int or not isinstance(shape, list) or len(shape) != 2:
            raise InputError(
                "dataset_configs.num_spec_frames and spec_shape must be an integer and "
                f"[time, mel], got {count!r} and {shape!r}"
            )
        sizes["spectrogram"] = (count * shape[0], shape[1])
    return sizes


def _checked(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a library function with what the flags say; what it refuses is the user's to mend."""
    try:
        return function(*args, **kwargs)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error
