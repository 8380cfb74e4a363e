"""Columns of a table with millions of rows: a few flat tensors, not a Python object for each cell.

A list of strings or dicts grows in every worker process, because counting references writes to its
pages. A tensor is shared: a forked worker reads the parent's pages, and a worker that is started
afresh gets it through shared memory.
"""

from array import array
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Strings:
    """A column of strings.

    Args:
        data: Their UTF-8 bytes end to end, uint8.
        offsets: int64 ``[rows + 1]``; string ``i`` is ``data[offsets[i] : offsets[i + 1]]``.
    """

    def __init__(self, data: Tensor, offsets: Tensor) -> None:
        """Hold what was collected."""
        self.data = data
        self.offsets = offsets

    def __len__(self) -> int:
        """Number of strings."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        """One string."""
        begin, end = self.offsets[index : index + 2].tolist()
        return bytes(self.data[begin:end].tolist()).decode()


class StringsBuilder:
    """Fills ``Strings`` one by one.

    >>> builder = StringsBuilder()
    >>> for string in ("rain", "", "wind"):
    ...     builder.append(string)
    >>> builder.finish()[2]
    'wind'
    """

    def __init__(self) -> None:
        """Begin without strings."""
        self._data = bytearray()
        self._offsets = array("q", [0])

    def append(self, string: str) -> None:
        """Add a string."""
        self._data += string.encode()
        self._offsets.append(len(self._data))

    def finish(self) -> Strings:
        """The column."""
        return Strings(as_tensor(self._data, torch.uint8), as_tensor(self._offsets, torch.int64))


class Categories:
    """A column whose cells hold any number of names, each of which occurs in many rows.

    The distinct names are kept once. A cell is a run of ``codes``, the positions of its names.

    Args:
        names: The distinct names, in order of their first appearance.
        codes: int32, those of all cells end to end.
        offsets: int64 ``[rows + 1]``; cell ``i`` is ``codes[offsets[i] : offsets[i + 1]]``.
    """

    def __init__(self, names: Sequence[str], codes: Tensor, offsets: Tensor) -> None:
        """Hold what was counted."""
        self.names = tuple(names)
        self.codes = codes
        self.offsets = offsets

    def __getitem__(self, index: int) -> tuple[str, ...]:
        """The names in one cell."""
        begin, end = self.offsets[index : index + 2].tolist()
        return tuple(self.names[code] for code in self.codes[begin:end].tolist())

    @property
    def counts(self) -> Tensor:
        """Number of names in each cell, int64 ``[rows]``."""
        return self.offsets.diff()

    @property
    def rows(self) -> Tensor:
        """The row of each code, int64."""
        return torch.arange(len(self.counts)).repeat_interleave(self.counts)


class CategoriesBuilder:
    """Fills ``Categories`` cell by cell.

    Args:
        empty: Number of cells without names with which the column begins.
    """

    def __init__(self, empty: int = 0) -> None:
        """Begin with the empty cells."""
        self._positions: dict[str, int] = {}
        self._codes = array("i")
        self._offsets = array("q", [0] * (empty + 1))

    def append(self, names: Iterable[str]) -> None:
        """Add a cell."""
        for name in names:
            self._codes.append(self._positions.setdefault(name, len(self._positions)))
        self._offsets.append(len(self._codes))

    def finish(self) -> Categories:
        """The column."""
        codes = as_tensor(self._codes, torch.int32)
        return Categories(tuple(self._positions), codes, as_tensor(self._offsets, torch.int64))


def as_tensor(values: array | bytearray, dtype: torch.dtype) -> Tensor:
    """A tensor over the memory of a flat array, which must not grow any more."""
    return torch.frombuffer(values, dtype=dtype) if len(values) else torch.empty(0, dtype=dtype)
