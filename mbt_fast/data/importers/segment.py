"""What all annotation files come down to: segments of videos, with labels."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mbt_fast.data.labels import read_labels
from mbt_fast.errors import InputError

_TIME = re.compile(r"(\d+:){0,2}\d+(\.\d*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class LabelledSegment:
    """One row of an annotation file.

    Args:
        id: Its id in the manifest.
        video: The id of the video that it is cut from.
        start: Where it begins in that video, in seconds.
        end: Where it ends; ``None`` if the file does not say.
        labels: Names of classes.
        verb: Name of the verb.
        noun: Name of the noun.
        split: What the file says of the part of the data set that it belongs to, or ``""``.
    """

    id: str
    video: str
    start: float
    end: float | None
    labels: tuple[str, ...] = ()
    verb: str | None = None
    noun: str | None = None
    split: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all its classes, as the list of classes has them."""
        parts = (("verb:", self.verb), ("noun:", self.noun))
        return self.labels + tuple(f"{prefix}{name}" for prefix, name in parts if name)


def read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines of an annotation file: comma-separated, spaces after commas, ``#`` for comments.

    Yields:
        The number of the line, and its cells.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            for cells in reader:
                if cells and not cells[0].startswith("#"):
                    yield reader.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot read the annotations ({reason})") from error


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of an annotation file with a header.

    Args:
        path: The file.
        columns: Those that it must have.

    Yields:
        The number of the line, and its cells by column.

    Raises:
        InputError: The file cannot be read, or lacks a column or a cell.
    """
    lines = read_csv(path)
    _, header = next(lines, (0, []))
    for column in columns:
        if column not in header:
            raise InputError(f"{path}: must have the column {column!r}, got {header}")
    for line, cells in lines:
        if len(cells) != len(header):
            raise InputError(f"{path}: line {line} must have {len(header)} cells, got {len(cells)}")
        yield line, dict(zip(header, cells, strict=True))


def seconds(text: str, path: Path, line: int) -> float:
    """A time: seconds, or hours, minutes and seconds with colons between.

    >>> seconds("00:01:02.50", Path("a.csv"), 2)
    62.5

    Raises:
        InputError: It is none.
    """
    if not _TIME.fullmatch(text):
        raise InputError(f"{path}: line {line}: a time must be seconds or h:m:s, got {text!r}")
    time = 0.0
    for part in text.split(":"):
        time = time * 60 + float(part)
    return round(time, 6)


def names_of(segments: Sequence[LabelledSegment], labels: Path | None) -> list[str]:
    """The classes: those of a file of labels, or all that occur, sorted."""
    if labels is not None:
        return read_labels(labels)
    return sorted({name for segment in segments for name in segment.labels})
