"""Names of classes."""

import csv
import io
import os
from pathlib import Path

from mbt_fast.errors import InputError

_NAME_COLUMN = "display_name"


def read_labels(path: str | os.PathLike[str], num_classes: int | None = None) -> list[str]:
    """Read the names of the classes in order.

    A ``.csv`` file has a header; the names are its column ``display_name``, or else the last one,
    and a column ``index`` gives their order (AudioSet's ``class_labels_indices.csv`` has both). Any
    other file is text with one name per line.

    Args:
        path: The file, in UTF-8.
        num_classes: How many names there must be; ``None`` takes any number from 1 on.

    Raises:
        InputError: The file cannot be read, is not CSV as its suffix says, or its number of names
            differs.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: cannot read the labels ({reason})") from error
    labels = _from_csv(path, text) if path.suffix.lower() == ".csv" else _from_text(text)
    if num_classes is None and not labels:
        raise InputError(f"{path}: labels must name the classes, got none")
    if num_classes is not None and len(labels) != num_classes:
        raise InputError(
            f"{path}: labels must name the model's {num_classes} classes, got {len(labels)}"
        )
    return labels


def _from_text(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _from_csv(path: Path, text: str) -> list[str]:
    reader = csv.reader(io.StringIO(text), skipinitialspace=True)
    try:
        header, *rows = [row for row in reader if row] or [[]]
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file ({error})") from error
    if any(len(row) != len(header) for row in rows):
        raise InputError(f"{path}: each line must have {len(header)} columns like the header")
    column = header.index(_NAME_COLUMN) if _NAME_COLUMN in header else len(header) - 1
    if "index" in header:
        order = {row[header.index("index")]: row for row in rows}
        if set(order) != {str(index) for index in range(len(rows))}:
            raise InputError(f"{path}: index must count from 0 to {len(rows) - 1} without a gap")
        rows = [order[str(index)] for index in range(len(rows))]
    return [row[column] for row in rows]
