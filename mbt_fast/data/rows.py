"""Rows of a manifest as files hold them: CSV with a header, or one JSON object on each line."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mbt_fast.errors import InputError

COLUMNS = ("path", "id", "start", "end", "labels", "verb", "noun", "offset", "size")
HEAD = "labels."  # begins a column with the labels of one head, such as "labels.sum"
SEPARATOR = "|"  # between the labels of a row


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a ``.csv`` or ``.jsonl`` file, in order.

    Yields:
        The number of the row's last line, and its cells. Those of CSV are text.

    Raises:
        InputError: The file cannot be read, or a line is not a row.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: a manifest must end in {' or '.join(readers)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from reader(path, file)
    except OSError as error:
        raise InputError(f"{path}: cannot read the manifest ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot read the manifest (not UTF-8 text)") from error


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> int:
    """Write a manifest, as CSV or JSONL by its suffix; it appears whole or not at all.

    Args:
        path: The file.
        rows: Cells by column; ``None`` and columns that a row lacks are left empty. ``labels``, and
            ``labels.HEAD`` of a head, are sequences of names.
        columns: The columns of a CSV file, and of each JSON object those that are not empty.

    Returns:
        The number of rows.

    Raises:
        InputError: The file cannot be written, or CSV cannot hold a label.
    """
    write = {".csv": _write_csv, ".jsonl": _write_jsonl}.get(path.suffix.lower())
    if write is None:
        raise InputError(f"{path}: a manifest must end in .csv or .jsonl")
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            count = write(file, rows, columns)
        os.replace(partial, path)
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: a manifest is UTF-8, got {error.object!r}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot write the manifest ({error.strerror})") from error
    return count


def _read_csv(path: Path, file: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(file, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) != len(header):
            raise InputError(f"{path}: each column must have a name of its own, got {header}")
        if header and "path" not in header:
            raise InputError(f"{path}: the header must have the column 'path', got {header}")
        for cells in reader:
            if len(cells) == len(header):
                yield reader.line_num, dict(zip(header, cells, strict=True))
            elif cells:
                raise InputError(
                    f"{path}: line {reader.line_num} must have {len(header)} columns like the "
                    f"header, got {len(cells)}"
                )
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num} is not CSV ({error})") from error


def _read_jsonl(path: Path, file: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} must be a JSON object, got {line.strip()}")
        yield number, row


def _write_csv(file: Any, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> int:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    count = 0
    for row in rows:
        writer.writerow(_csv_cell(row.get(column)) for column in columns)
        count += 1
    return count


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return value
    for label in value:
        if SEPARATOR in label:
            raise InputError(f"a label in CSV must not hold {SEPARATOR!r}, got {label!r}")
    return SEPARATOR.join(value)


def _write_jsonl(file: Any, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> int:
    count = 0
    for row in rows:
        cells = {column: row[column] for column in columns if row.get(column) is not None}
        file.write(json.dumps(cells, ensure_ascii=False, allow_nan=False) + "\n")
        count += 1
    return count
