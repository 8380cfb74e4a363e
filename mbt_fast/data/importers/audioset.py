"""AudioSet's ``*_segments.csv`` and ``class_labels_indices.csv``."""

from collections.abc import Sequence
from pathlib import Path

from mbt_fast.data.importers.segment import LabelledSegment, read_csv, read_table, seconds
from mbt_fast.data.labels import read_labels
from mbt_fast.errors import InputError

_CLASSES = "class_labels_indices.csv"


def read(
    annotations: Sequence[Path], labels: Path | None
) -> tuple[list[LabelledSegment], list[str]]:
    """Read segments; the ids of their labels become the names of the classes.

    A line is ``YTID, start, end, "id,id"`` with a space after each comma; lines with ``#`` are
    comments. A segment is called by its video and its start in milliseconds, as AudioSet itself
    calls it.

    Args:
        annotations: The files of segments.
        labels: ``class_labels_indices.csv``; ``None`` takes the one beside the first file.

    Raises:
        InputError: A file cannot be read or is not of this kind, or a label is no class.
    """
    labels = labels or annotations[0].parent / _CLASSES
    if not labels.is_file():
        raise InputError(f"{labels}: the classes of AudioSet must be given, got no such file")
    names = read_labels(labels)
    index = {row["mid"]: int(row["index"]) for _, row in read_table(labels, ("index", "mid"))}
    segments = []
    for path in annotations:
        for line, cells in read_csv(path):
            if len(cells) != 4:
                raise InputError(f"{path}: line {line} must have 4 cells, got {len(cells)}")
            video, start, end = cells[0], *(seconds(cell, path, line) for cell in cells[1:3])
            found = []
            for mid in cells[3].split(","):
                if mid not in index:
                    raise InputError(f"{path}: line {line}: {mid!r} is no class of {labels}")
                found.append(names[index[mid]])
            name = f"{video}_{round(start * 1000)}"
            segments.append(LabelledSegment(name, video, start, end, tuple(dict.fromkeys(found))))
    return segments, names
