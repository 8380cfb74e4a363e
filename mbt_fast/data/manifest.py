"""Manifests: the list of clips that a data set consists of, with their labels."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from mbt_fast.data.classes import PREFIX, TASKS, ClassIndex, sorted_names
from mbt_fast.data.packed import PackedFile
from mbt_fast.data.rows import SEPARATOR
from mbt_fast.data.table import Table, read_table
from mbt_fast.errors import InputError

_COLUMNS = {"multilabel": ("labels",), "single": ("labels",), "verb_noun": ("verb", "noun")}


@dataclass(frozen=True)
class Entry:
    """One row of a manifest.

    Args:
        path: The media file, absolute.
        id: What the row is called in results; no other row has it.
        start: Where in the file the clip begins, in seconds; ``None`` is the file's beginning.
        end: Where it ends; ``None`` is the file's end.
        labels: Names, or indices as text; none, one or several.
        verb: Its verb, for data with verbs and nouns.
        noun: Its noun.
        offset: Where in ``path`` the media file begins, in bytes, if ``path`` is a packed shard.
        size: How many bytes of the shard it has.
    """

    path: str
    id: str
    start: float | None = None
    end: float | None = None
    labels: tuple[str, ...] = ()
    verb: str | None = None
    noun: str | None = None
    offset: int | None = None
    size: int | None = None

    @property
    def media(self) -> str | BinaryIO:
        """What ``read_window`` and ``load_clip`` take: the path, or a part of the shard.

        Raises:
            ClipError: The shard cannot be opened, or is cut off.
        """
        if self.offset is None or self.size is None:
            return self.path
        name = f"{self.path}!{self.id}"
        return cast(BinaryIO, PackedFile(self.path, self.offset, self.size, name))


class Manifest:
    """The rows of a manifest, held in a few flat tensors, so that workers share them.

    The file is CSV with a header, or JSONL with the same keys: ``path`` (absolute, or relative to
    the manifest), and optionally ``id``, ``start`` and ``end`` (seconds), ``labels`` (names or
    indices, separated by ``|``; in JSONL also a list), ``verb`` and ``noun``. ``offset`` and
    ``size`` (bytes) are for packed shards. Other columns are left out, see ``ignored``.

    Without an ``id`` a row is called by its path as written, and by its times if it has any.

    >>> manifest = Manifest.read("train.csv")  # doctest: +SKIP
    >>> manifest[0].labels  # doctest: +SKIP
    ('Rain', 'Thunder')

    Args:
        path: The file. Messages name it, and relative paths start from its folder.
        table: What it holds.
    """

    def __init__(self, path: str | os.PathLike[str], table: Table) -> None:
        """Hold the table."""
        self.path = os.path.abspath(path)
        self._table = table

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Manifest":
        """Read a ``.csv`` or ``.jsonl`` file.

        Raises:
            InputError: The file cannot be read, has no rows, a row is not valid (the message names
                its line), or two rows have the same id.
        """
        return cls(path, read_table(Path(path)))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._table.path)

    def __getitem__(self, index: int) -> Entry:
        """One row, counted from 0.

        Raises:
            IndexError: There is no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0 .. {len(self) - 1}, got {index}")
        table = self._table
        return Entry(
            os.path.join(os.path.dirname(self.path), table.path[index]),
            table.id_of(index),
            table.time("start", index),
            table.time("end", index),
            table.names("labels", index),
            next(iter(table.names("verb", index)), None),
            next(iter(table.names("noun", index)), None),
            table.place("offset", index),
            table.place("size", index),
        )

    def __iter__(self) -> Iterator[Entry]:
        """All rows in order."""
        return (self[index] for index in range(len(self)))

    @property
    def hash(self) -> str:
        """SHA-256 of the ids in order and their labels, in hexadecimal digits.

        It does not depend on where the files are, nor on the format of the manifest.
        """
        return self._table.hash

    @property
    def ignored(self) -> tuple[str, ...]:
        """Columns of the file that mean nothing here."""
        return self._table.ignored

    @property
    def has_labels(self) -> bool:
        """Whether any row has a label, a verb or a noun."""
        return bool(self._table.categories)

    def label_names(self, task: str | None = None) -> tuple[str, ...]:
        """The classes that occur, sorted: names, or ``"0"`` to the highest if all are indices.

        Args:
            task: ``"multilabel"`` or ``"single"`` for the column ``labels``. ``"verb_noun"``, and
                ``None`` where there are no labels, for ``"verb:take", ..., "noun:plate", ...``,
                verbs first.

        Raises:
            InputError: The manifest has no labels, or none for this task.
        """
        return tuple(
            PREFIX[column] + name
            for column in self._label_columns(task)
            for name in sorted_names(self._table.categories[column].names)
        )

    def targets(self, names: Sequence[str], task: str) -> Tensor:
        """What a model should say of each row.

        Args:
            names: The names of all classes in order, those of ``"verb_noun"`` as ``label_names``
                has them.
            task: ``"multilabel"``, ``"single"`` or ``"verb_noun"``.

        Returns:
            ``"single"``: int64 ``[N]``, the class. ``"verb_noun"``: int64 ``[N, 2]``, the verb and
            the noun, each counted from 0. ``"multilabel"``: uint8 ``[N, K]``, 1 for each label.

        Raises:
            InputError: A row has a label that is no class, or not as many as the task asks for.
        """
        index = ClassIndex(names)
        columns = [self._classes(column, index) for column in self._label_columns(task)]
        if task == "multilabel":
            targets = torch.zeros(len(self), len(names), dtype=torch.uint8)
            targets[columns[0]] = 1
            return targets
        for column in self._label_columns(task):
            wrong = (self._table.categories[column].counts != 1).nonzero()
            if len(wrong):
                raise self._wrong_count(int(wrong[0]), column)
        if task == "single":
            return columns[0][1]
        return torch.stack((columns[0][1], columns[1][1] - index.n_verbs), dim=1)

    def target(self, row: int, index: ClassIndex, task: str) -> Tensor:
        """One row of ``targets``, at a cost that does not grow with their number.

        Args:
            row: The row, counted from 0.
            index: That of the names of all classes.
            task: As for ``targets``.

        Raises:
            InputError: As ``targets``, for this row.
        """
        columns = self._label_columns(task)
        classes = []
        for column in columns:
            labels = self._table.names(column, row)
            if task != "multilabel" and len(labels) != 1:
                raise self._wrong_count(row, column)
            for label in labels:
                found = index.find(label, column)
                if found is None:
                    raise self._unknown(row, column, label)
                classes.append(found)
        if task == "multilabel":
            target = torch.zeros(len(index), dtype=torch.uint8)
            target[classes] = 1
            return target
        if task == "single":
            return torch.tensor(classes[0])
        return torch.tensor((classes[0], classes[1] - index.n_verbs))

    def class_counts(self, names: Sequence[str], task: str | None = None) -> Tensor:
        """Number of rows that have each class, int64 ``[K]``.

        Args:
            names: As for ``targets``.
            task: As for ``label_names``.

        Raises:
            InputError: A label is no class, or there are no labels for the task.
        """
        index = ClassIndex(names)
        found = [self._classes(column, index)[1] for column in self._label_columns(task)]
        return torch.cat(found).bincount(minlength=len(names))

    def balanced_weights(self, names: Sequence[str], task: str | None = None) -> Tensor:
        """Weights that make every class equally likely to be drawn, float64 ``[N]``.

        Each row has the sum of one over the number of rows with its label, over its labels. A row
        without labels has 0 and is never drawn.

        Args:
            names: As for ``targets``.
            task: As for ``label_names``.

        Raises:
            InputError: A label is no class, or there are no labels for the task.
        """
        shares = self.class_counts(names, task).double().reciprocal()
        index = ClassIndex(names)
        weights = torch.zeros(len(self), dtype=torch.float64)
        for column in self._label_columns(task):
            rows, classes = self._classes(column, index)
            weights.index_add_(0, rows, shares[classes])
        return weights

    def _label_columns(self, task: str | None) -> tuple[str, ...]:
        """The columns with the labels of a task, or with any."""
        if task is not None and task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
        present = self._table.categories
        if task is None:
            task = "multilabel" if "labels" in present else "verb_noun"
        columns = _COLUMNS[task]
        if not all(column in present for column in columns):
            others = f" and unknown columns {', '.join(self.ignored)}" if self.ignored else ""
            raise InputError(
                f"{self.path}: task {task!r} needs the columns {' and '.join(columns)}, "
                f"got {' and '.join(present) or 'no labels'}{others}"
            )
        return columns

    def _classes(self, column: str, index: ClassIndex) -> tuple[Tensor, Tensor]:
        """The row and the class of every label in a column, int64 each."""
        categories = self._table.categories[column]
        found = [index.find(label, column) for label in categories.names]
        table = torch.tensor([-1 if position is None else position for position in found])
        classes = table[categories.codes.long()]
        unknown = (classes < 0).nonzero()
        if len(unknown):
            first = int(unknown[0])
            label = categories.names[int(categories.codes[first])]
            raise self._unknown(int(categories.rows[first]), column, label)
        return categories.rows, classes

    def _unknown(self, row: int, column: str, label: str) -> InputError:
        line = int(self._table.lines[row])
        return InputError(f"{self.path}: line {line}: {column} must name a class, got {label!r}")

    def _wrong_count(self, row: int, column: str) -> InputError:
        line = int(self._table.lines[row])
        labels = SEPARATOR.join(self._table.names(column, row)) or "none"
        return InputError(f"{self.path}: line {line}: {column} must be one label, got {labels}")
