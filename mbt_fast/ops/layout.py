"""Layouts that kernels read: the tensors themselves, or copies where theirs is another.

The caller must hold on to what is returned until its kernel has been launched.
"""

from collections.abc import Sequence
from typing import Any


def contiguous(*lists: Sequence[Any]) -> list[list[Any]]:
    """Lists of tensors, or ``None``, that are contiguous."""
    return [[None if t is None else t.contiguous() for t in entries] for entries in lists]


def last_dim_contiguous(*lists: Sequence[Any]) -> list[list[Any]]:
    """Lists of tensors, or ``None``, whose last dimension has stride 1."""
    return [
        [
            t if t is None or t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()
            for t in entries
        ]
        for entries in lists
    ]
