"""Write the manifest of an imported data set, the names of its classes, and what is missing."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mbt_fast.data.importers.segment import LabelledSegment
from mbt_fast.data.labels import read_labels
from mbt_fast.data.rows import write_rows
from mbt_fast.errors import InputError


@dataclass(frozen=True)
class Census:
    """What an import found.

    Args:
        names: The classes, in order.
        found: Number of clips of each class in the manifest.
        missing: Number of clips of each class whose file is missing.
    """

    names: tuple[str, ...]
    found: tuple[int, ...]
    missing: tuple[int, ...]

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        found: Iterable[LabelledSegment],
        missing: Iterable[LabelledSegment],
    ) -> "Census":
        """Count the clips of each class."""
        counts = [Counter(c for s in part for c in s.classes) for part in (found, missing)]
        return cls(tuple(names), *(tuple(count[name] for name in names) for count in counts))


def write_manifest(
    path: Path,
    clips: Sequence[tuple[LabelledSegment, Path]],
    whole_videos: bool,
    columns: Sequence[str],
) -> None:
    """Write the manifest of found clips; paths inside its folder are relative to it.

    Args:
        path: The ``.csv`` or ``.jsonl`` file.
        clips: Segments with their files.
        whole_videos: Whether the files are longer than the segments, which then need their times.
        columns: What the rows have besides path and id: ``labels``, or ``verb`` and ``noun``.

    Raises:
        InputError: The file cannot be written.
    """
    times = ("start", "end") if whole_videos else ()
    rows = (
        {
            "path": relative_path(file, path.parent),
            "id": segment.id,
            "start": segment.start,
            "end": segment.end,
            "labels": segment.labels,
            "verb": segment.verb,
            "noun": segment.noun,
        }
        for segment, file in clips
    )
    write_rows(path, rows, ("path", "id", *times, *columns))


def write_labels(path: Path, names: Sequence[str]) -> None:
    """Write names of classes, one per line, unless the file has them.

    Raises:
        InputError: The file has other names, or cannot be written.
    """
    if path.exists():
        if read_labels(path) != list(names):
            raise InputError(
                f"{path}: holds other classes than these annotations; give them as --labels, "
                "or move the file away"
            )
        return
    try:
        path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot write the labels ({error.strerror})") from error


def relative_path(file: Path, folder: Path) -> str:
    """A path relative to a folder if it lies inside, and absolute otherwise."""
    absolute, base = os.path.abspath(file), os.path.abspath(folder)
    inside = os.path.commonpath((absolute, base)) == base
    return os.path.relpath(absolute, base) if inside else absolute
