"""Recordings of the official model; ``tests/golden/README.md`` says what they hold."""

import json
from pathlib import Path

import numpy as np

from mbt_fast import MBTConfig

FOLDER = Path(__file__).parents[1] / "golden"
CHECKPOINT = FOLDER / "bottleneck.checkpoint"
NAMES = (
    "bottleneck",
    "bottleneck_shared_encoder",
    "cross_attention",
    "early",
    "late",
    "rgb_only",
    "self_attention_shared",
    "spectrogram_only",
    "unimodal_eval",
)


def read(name="bottleneck"):
    """All arrays of a recording by key."""
    with np.load(FOLDER / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def group(record, prefix):
    """The arrays whose key starts with ``prefix/``, without it."""
    start = f"{prefix}/"
    return {k.removeprefix(start): a for k, a in record.items() if k.startswith(start)}


def scenic_config(record):
    return json.loads(str(record["scenic_config"]))


def config_of(record):
    shapes = {name: array.shape for name, array in group(record, "input").items()}
    return MBTConfig.from_scenic(scenic_config(record), shapes)
