"""The configuration of the weights that ``mbt-fast convert`` reads, as its flags give it."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mbt_fast.checkpoint.files import read_json
from mbt_fast.checkpoint.pretrained import STAMP
from mbt_fast.config import MBTConfig, check_sizes
from mbt_fast.errors import InputError
from mbt_fast.models.registry import config_for
from mbt_fast.scenic_config import SCENIC_KEYS, input_sizes, modalities_of

_EXAMPLE_SIZES = {"rgb": (32, 224, 224), "spectrogram": (800, 128)}  # the released checkpoints'


def config_from_flags(args: argparse.Namespace) -> MBTConfig | None:
    """The config that ``--model`` or ``--config`` name, changed by ``--set``; ``None`` without.

    Of an official config ``--set`` changes official keys too, such as ``attention_dropout_rate``.

    Raises:
        InputError: The file is malformed, or does not tell a size of the input.
        TypeError: A field has the wrong type.
        ValueError: A field is unknown or out of range, or the fields contradict one another.
    """
    overrides = parse_overrides(args.overrides)
    if args.model:
        return config_for(args.model, **overrides)
    return _read_config(args.config, overrides) if args.config else None


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """Fields from ``KEY=VALUE``; a value that is not JSON is text.

    Raises:
        InputError: An item has no key or no value.
    """
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


def _read_config(path: Path, overrides: dict[str, Any]) -> MBTConfig:
    """A config of ours, stamped or not, or an official one, whole or its ``model`` alone."""
    values = read_json(path)
    model = values.get("model", values)
    if not isinstance(model, Mapping):
        raise InputError(f"{path}: model must be a mapping, got {model!r}")
    if "modality_fusion" in model:
        return _from_scenic(path, {**values, **model}, overrides)
    fields = {key: value for key, value in values.items() if key not in STAMP}
    return MBTConfig.from_dict(fields).replace(**overrides)


def _from_scenic(path: Path, values: dict[str, Any], overrides: dict[str, Any]) -> MBTConfig:
    """Official keys are changed before they are translated, for their check may need the change."""
    values |= {key: value for key, value in overrides.items() if key in SCENIC_KEYS}
    overrides = {key: value for key, value in overrides.items() if key not in SCENIC_KEYS}
    modalities = modalities_of(values)
    check_sizes(overrides, modalities)
    sizes = {**input_sizes(values), **overrides.get("input_size", {})}
    unknown = [m for m in modalities if m not in sizes]
    if unknown:
        example = json.dumps({m: _EXAMPLE_SIZES[m] for m in unknown}, separators=(",", ":"))
        raise InputError(
            f"{path} does not tell the input size of {' and '.join(unknown)}; give it by --set, "
            f"such as --set 'input_size={example}'"
        )
    for m, size in sizes.items():
        if not isinstance(size, (list, tuple)):
            raise InputError(f"input_size[{m!r}] must be a list, got {size!r}")
    config = MBTConfig.from_scenic(values, {m: (*size, 3) for m, size in sizes.items()})
    return config.replace(**{key: v for key, v in overrides.items() if key != "input_size"})
