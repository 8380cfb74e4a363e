"""Pretrained encoders of timm and Hugging Face by name, and from the record of a saved model.

A record is plain data from which the encoder can be built again, without its weights and without
the network: ``{"library": "timm", "name": ..., "options": {...}}``, or
``{"library": "hf", "config": {...}}`` with the fields of the Hugging Face configuration.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mbt_fast.errors import InputError

Record = dict[str, Any]
LIBRARIES = ("timm", "hf")


def load_tower(source: str, input_size: Sequence[int]) -> tuple[nn.Module, Record]:
    """Load an encoder with its pretrained weights.

    Args:
        source: ``"timm:NAME"`` or ``"hf:NAME"``; in place of a name a directory that the library's
            ``save_pretrained`` wrote, for which no network is needed.
        input_size: ``(frames, height, width)`` or ``(time, mel)``, to which timm fits the
            position embeddings; an encoder of Hugging Face keeps its own.

    Returns:
        The encoder without a classifier, and its record.

    Raises:
        InputError: The source has another form, or the library is not installed or cannot load it.
    """
    library, _, name = source.partition(":")
    if library not in LIBRARIES or not name:
        raise InputError(f'an encoder must be "timm:NAME" or "hf:NAME", got {source!r}')
    load = _load_timm if library == "timm" else _load_hf
    try:
        return load(name, tuple(input_size))
    except ModuleNotFoundError as error:
        raise InputError(f"the encoder {source!r} needs the package {error.name!r}") from error
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the encoder {source!r} cannot be loaded: {reason}") from error


def build_tower(record: Record) -> nn.Module:
    """Build an encoder from its record, with random weights.

    Raises:
        InputError: The record is malformed.
        ModuleNotFoundError: The library is not installed.
    """
    try:
        if record["library"] == "timm":
            return _create_timm(record["name"], record["options"])
        return _from_hf_config(record["config"])
    except (KeyError, TypeError) as error:
        raise InputError(f"not the record of an encoder: {record}") from error


def _load_timm(name: str, input_size: tuple[int, ...]) -> tuple[nn.Module, Record]:
    options = {"img_size": list(input_size[-2:])}
    local = Path(name).is_dir()
    tower = _create_timm(f"local-dir:{name}" if local else name, options, pretrained=True)
    if local:  # its own name is in its configuration, and is known to timm
        name = tower.pretrained_cfg["architecture"]
    return tower, {"library": "timm", "name": name, "options": options}


def _create_timm(name: str, options: dict[str, Any], **more: Any) -> Any:
    import timm

    sizes: dict[str, Any] = {key: tuple(value) for key, value in options.items()}
    return timm.create_model(name, num_classes=0, **sizes, **more)


def _load_hf(name: str, input_size: tuple[int, ...]) -> tuple[nn.Module, Record]:
    from transformers import AutoModel

    tower = AutoModel.from_pretrained(name)
    config = json.loads(tower.config.to_json_string(use_diff=False))
    fields = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    return _without_pooler(tower), {"library": "hf", "config": fields}


def _from_hf_config(config: dict[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    fields = {key: value for key, value in config.items() if key != "model_type"}
    return _without_pooler(
        AutoModel.from_config(AutoConfig.for_model(config["model_type"], **fields))
    )


def _without_pooler(tower: Any) -> nn.Module:
    """Our classifier reads the tokens; a pooler would never be trained."""
    if hasattr(tower, "pooler"):
        tower.pooler = None
    return tower
