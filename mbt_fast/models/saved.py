"""Models of either kind, to and from a folder."""

import json
from collections.abc import Mapping
from os import PathLike

from torch import Tensor

from mbt_fast import checkpoint
from mbt_fast.checkpoint.pretrained import CONFIG_FILE
from mbt_fast.checkpoint.runs import resolve_run
from mbt_fast.models.fused_classifier import STAMP, FusedClassifier
from mbt_fast.models.mbt import MBT

Model = MBT | FusedClassifier


def save_model(
    directory: "str | PathLike[str]", model: Model, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write ``config.json`` and ``model.safetensors``.

    Args:
        directory: Where to; made if need be.
        model: What is saved.
        state_dict: Other weights of this model, such as an average.

    Raises:
        CheckpointError: The weights do not fit the model.
        OSError: The directory cannot be written.
    """
    if isinstance(model, FusedClassifier):
        model.save_pretrained(directory, state_dict)
    else:
        weights = model.state_dict() if state_dict is None else state_dict
        checkpoint.save_pretrained(directory, model.config, weights)


def load_model(directory: "str | PathLike[str]") -> Model:
    """Load what ``save_model`` wrote, or a training run.

    Args:
        directory: As in ``resolve_run``.

    Raises:
        CheckpointError: A file is malformed, or the weights do not fit the config.
        OSError: A file cannot be read.
        ModuleNotFoundError: The library of a fused encoder is not installed.
    """
    directory = resolve_run(directory)
    try:
        kind = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))["format"]
    except (ValueError, KeyError, TypeError):
        kind = None  # which the reader of an MBT refuses in its own words
    if kind == STAMP["format"]:
        return FusedClassifier.from_pretrained(directory)
    return MBT.from_pretrained(directory)
