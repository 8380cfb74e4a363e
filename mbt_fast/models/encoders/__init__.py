"""Encoders of other libraries, recognised by their attributes; none of them is imported."""

from mbt_fast.models.encoders.family import Family, Layer, Tower, look_up
from mbt_fast.models.encoders.fit import check_training, families_of, warn_of_hooks

__all__ = [
    "Family",
    "Layer",
    "Tower",
    "check_training",
    "families_of",
    "look_up",
    "warn_of_hooks",
]
