"""What the commands that read a manifest share: its argument, workers, and progress."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from mbt_fast.data.entry import Entry
from mbt_fast.data.manifest import Manifest
from mbt_fast.data.workers import Items, call_for_each
from mbt_fast.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


class Rows:
    """Rows of a manifest, evenly spread over it.

    Args:
        manifest: The manifest.
        limit: How many rows at most; ``None`` for all.
    """

    def __init__(self, manifest: Manifest, limit: int | None) -> None:
        """Hold the manifest."""
        self._manifest = manifest
        self._count = len(manifest) if limit is None else min(limit, len(manifest))

    def __len__(self) -> int:
        """Number of rows."""
        return self._count

    def __getitem__(self, index: int) -> Entry:
        """One of them."""
        if index >= self._count:
            raise IndexError(f"index must be below {self._count}, got {index}")
        return self._manifest[index * len(self._manifest) // self._count]


def add_manifest(parser: argparse.ArgumentParser) -> None:
    """Declare the manifest to read."""
    parser.add_argument("manifest", type=Path, metavar="MANIFEST", help="a .csv or .jsonl file")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Declare the number of processes."""
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes that decode; 0 for none (2)"
    )


def progress(
    function: Callable[[T], R], items: Items[T], workers: int, unit: str = "clip"
) -> Iterator[R]:
    """The result for each item in order, under a bar on terminals.

    Raises:
        InputError: The number of workers is negative, or one of them died.
    """
    from tqdm import tqdm

    if workers < 0:
        raise InputError(f"--workers must be at least 0, got {workers}")
    results = call_for_each(function, items, workers)
    yield from tqdm(results, total=len(items), unit=unit, disable=None)
