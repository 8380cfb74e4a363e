"""The columns of a manifest, read from its file and checked line by line."""

import hashlib
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbt_fast.data.columns import (
    Categories,
    CategoriesBuilder,
    Strings,
    StringsBuilder,
    as_tensor,
)
from mbt_fast.data.rows import COLUMNS, HEAD, SEPARATOR, read_rows
from mbt_fast.errors import InputError

_TIMES = ("start", "end")
_PLACES = ("offset", "size")
_CATEGORIES = ("labels", "verb", "noun")


@dataclass(frozen=True)
class Table:
    """What the file of a manifest holds, in flat tensors.

    Args:
        path: The column ``path``, as written.
        id: The column ``id``; empty for a row that has none.
        lines: int64 ``[rows]``, the line of the file that holds each row.
        times: Columns ``start`` and ``end`` where any row has one: float64, NaN for none.
        places: Columns ``offset`` and ``size`` where any row has one: int64, -1 for none.
        categories: Columns ``labels``, ``verb``, ``noun`` and ``labels.HEAD`` where any row has
            one.
        ignored: Other columns.
        hash: SHA-256 of the ids in order and their labels, in hexadecimal digits.
    """

    path: Strings
    id: Strings
    lines: Tensor
    times: Mapping[str, Tensor]
    places: Mapping[str, Tensor]
    categories: Mapping[str, Categories]
    ignored: tuple[str, ...]
    hash: str

    def id_of(self, row: int) -> str:
        """The id of a row, given or not."""
        return self.id[row] or default_id(self.path[row], *(self.time(n, row) for n in _TIMES))

    def time(self, name: str, row: int) -> float | None:
        """The ``start`` or ``end`` of a row in seconds."""
        value = self.times[name][row].item() if name in self.times else math.nan
        return None if math.isnan(value) else value

    def place(self, name: str, row: int) -> int | None:
        """The ``offset`` or ``size`` of a row in bytes."""
        value = int(self.places[name][row]) if name in self.places else -1
        return None if value < 0 else value

    def names(self, name: str, row: int) -> tuple[str, ...]:
        """The labels of a row in one of ``categories``, or in a column without any."""
        return self.categories[name][row] if name in self.categories else ()


def read_table(path: Path) -> Table:
    """Read the file of a manifest.

    Raises:
        InputError: The file cannot be read, has no rows, a row is not valid (the message names its
            line), or two rows have the same id.
    """
    builder = _Builder()
    for line, row in read_rows(path):
        try:
            builder.append(line, row)
        except ValueError as error:
            raise InputError(f"{path}: line {line}: {error}") from error
    if not builder.lines:
        raise InputError(f"{path}: a manifest must have rows, got none")
    table = builder.finish()
    _check_ids(path, table, as_tensor(builder.id_hashes, torch.int64))
    return table


def default_id(path: str, start: float | None, end: float | None) -> str:
    """What a row without an id is called.

    >>> default_id("kitchen.mp4", 1.5, None)
    'kitchen.mp4:1.5-'
    """
    if start is None and end is None:
        return path
    return f"{path}:{'' if start is None else start}-{'' if end is None else end}"


@dataclass
class _Builder:
    """Collects rows."""

    path: StringsBuilder = field(default_factory=StringsBuilder)
    id: StringsBuilder = field(default_factory=StringsBuilder)
    lines: array = field(default_factory=lambda: array("q"))
    id_hashes: array = field(default_factory=lambda: array("q"))
    times: dict[str, array] = field(default_factory=lambda: {n: array("d") for n in _TIMES})
    places: dict[str, array] = field(default_factory=lambda: {n: array("q") for n in _PLACES})
    categories: dict[str, CategoriesBuilder] = field(
        default_factory=lambda: {n: CategoriesBuilder() for n in _CATEGORIES}
    )
    ignored: dict[str, None] = field(default_factory=dict)
    hash: Any = field(default_factory=hashlib.sha256)

    def append(self, line: int, row: Mapping[str, Any]) -> None:
        """Add a row.

        Raises:
            ValueError: It is not valid.
        """
        path, given = _text(row, "path"), _text(row, "id")
        if not path:
            raise ValueError("path must name a file, got none")
        start, end = (_number(row, name, float) for name in _TIMES)
        if end is not None and end <= (start or 0):
            raise ValueError(f"end must be later than start, got {end:g} s after {start or 0:g} s")
        offset, size = (_number(row, name, int) for name in _PLACES)
        if (offset is None) != (size is None):
            raise ValueError("offset and size must both be given or none, got one")
        labels = _labels(row, "labels")
        names = [[name] if (name := _text(row, column)) else [] for column in ("verb", "noun")]
        heads = {column: _labels(row, column) for column in row if column.startswith(HEAD)}
        for column in heads.keys() - self.categories.keys():
            _check_head(column)

        called = given or default_id(path, start, end)
        self.path.append(path)
        self.id.append(given)
        self.lines.append(line)
        self.id_hashes.append(hash(called))
        for column, time in zip(_TIMES, (start, end), strict=True):
            self.times[column].append(math.nan if time is None else time)
        for column, place in zip(_PLACES, (offset, size), strict=True):
            self.places[column].append(-1 if place is None else place)
        for column in heads:
            self.categories.setdefault(column, CategoriesBuilder(empty=len(self.lines) - 1))
        cells = dict(zip(_CATEGORIES, (labels, *names), strict=True)) | heads
        for column, builder in self.categories.items():
            builder.append(cells.get(column, ()))
        known = (*COLUMNS, *heads)
        self.ignored.update(dict.fromkeys(name for name in row if name not in known))
        by_head = sorted((column, sorted(cell)) for column, cell in heads.items() if cell)
        self.hash.update(repr((called, sorted(labels), *names, *by_head)).encode())

    def finish(self) -> Table:
        """The columns; those without any value are dropped."""
        times = {name: as_tensor(column, torch.float64) for name, column in self.times.items()}
        places = {name: as_tensor(column, torch.int64) for name, column in self.places.items()}
        categories = {name: column.finish() for name, column in self.categories.items()}
        return Table(
            self.path.finish(),
            self.id.finish(),
            as_tensor(self.lines, torch.int64),
            {name: column for name, column in times.items() if not column.isnan().all()},
            {name: column for name, column in places.items() if (column >= 0).any()},
            {name: column for name, column in categories.items() if column.names},
            tuple(self.ignored),
            self.hash.hexdigest(),
        )


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):  # an index in JSON
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}")
    return value or ""


def _number(row: Mapping[str, Any], name: str, kind: type) -> Any:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        number = kind(str(value))
    except ValueError:
        number = -1
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    return number


def _check_head(column: str) -> None:
    head = column.removeprefix(HEAD)
    if not head or ":" in head or head != head.strip():
        raise ValueError(
            f"a column {HEAD}HEAD must name a head without ':' or spaces around it, got {column!r}"
        )


def _labels(row: Mapping[str, Any], column: str) -> list[str]:
    """The labels of a cell: text with separators, or in JSON also an index or a list."""
    value = row.get(column)
    if not value and value != 0:
        return []
    if isinstance(value, str):
        labels = [label.strip() for label in value.split(SEPARATOR)]
    else:
        values = value if isinstance(value, list) else [value]
        labels = [_text({column: item}, column) for item in values]
    if not all(labels):
        raise ValueError(f"{column} must not be empty between separators, got {value!r}")
    if len(set(labels)) != len(labels):
        raise ValueError(f"{column} must differ from one another, got {value!r}")
    return labels


def _check_ids(path: Path, table: Table, hashes: Tensor) -> None:
    """Refuse an id that occurs twice. Only ids with equal hashes are compared as text."""
    ordered, rows = hashes.sort(stable=True)
    seen: dict[str, int] = {}
    repeated = ordered.diff() == 0
    none = repeated.new_zeros(1)
    suspects = torch.cat((repeated, none)) | torch.cat((none, repeated))
    for row in rows[suspects].sort().values.tolist():
        called = table.id_of(row)
        if called in seen:
            raise InputError(
                f"{path}: each id must occur once, got {called!r} in lines "
                f"{table.lines[seen[called]]} and {table.lines[row]}"
            )
        seen[called] = row
