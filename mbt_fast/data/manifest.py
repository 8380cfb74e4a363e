"""Manifests: the list of clips that a data set consists of, with their labels."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mbt_fast.data.classes import (
    ClassIndex,
    class_name,
    heads_of_columns,
    label_column,
    sorted_names,
)
from mbt_fast.data.entry import Entry
from mbt_fast.data.rows import HEAD, SEPARATOR
from mbt_fast.data.table import Table, read_table
from mbt_fast.errors import InputError


class Manifest:
    """The rows of a manifest, held in a few flat tensors, so that workers share them.

    The file is CSV with a header, or JSONL with the same keys: ``path`` (absolute, or relative to
    the manifest), and optionally ``id``, ``start`` and ``end`` (seconds), ``labels`` (names or
    indices, separated by ``|``; in JSONL also a list), ``verb`` and ``noun``, or ``labels.HEAD``
    for each head of a model with several. ``offset`` and ``size`` (bytes) are for packed shards.
    Other columns are left out, see ``ignored``.

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
            self._heads(index),
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
        """Whether any row has a label of whatever kind."""
        return bool(self._table.categories)

    def label_names(self, task: str | None = None) -> tuple[str, ...]:
        """The classes that occur, sorted: names, or ``"0"`` to the highest if all are indices.

        Args:
            task: ``"multilabel"`` or ``"single"`` for the column ``labels``; ``"verb_noun"`` for
                ``"verb:take", ..., "noun:plate", ...``; ``"multitask"`` for all columns
                ``labels.HEAD``, ``"HEAD:name", ...``, in the order of the file. ``None`` takes
                the first of ``labels``, ``labels.HEAD`` and the pair that the manifest has.

        Raises:
            InputError: The manifest has no labels, or none for this task.
        """
        task = task or self._likely_task()
        heads = heads_of_columns(self._table.categories, task)
        self._check_columns(task, heads)
        return tuple(
            class_name(head, name)
            for head in heads
            for name in sorted_names(self._table.categories[label_column(head, task)].names)
        )

    def targets(self, names: Sequence[str], task: str) -> Tensor:
        """What a model should say of each row.

        Args:
            names: The names of all classes in order, those of several heads as ``label_names`` has
                them. Columns of heads that they do not name are left out.
            task: One of ``TASKS``.

        Returns:
            ``"single"``: int64 ``[N]``, the class. ``"verb_noun"`` and ``"multitask"``: int64
            ``[N, H]``, the class of each head, counted from 0 within it. ``"multilabel"``: uint8
            ``[N, K]``, 1 for each label.

        Raises:
            InputError: A row has a label that is no class, or not as many as the task asks for.
        """
        index = self._index(names, task)
        labels = [self._classes(head, index) for head in index.heads]
        if task == "multilabel":
            targets = torch.zeros(len(self), len(names), dtype=torch.uint8)
            targets[labels[0]] = 1
            return targets
        for head in index.heads:
            column = label_column(head, task)
            wrong = (self._table.categories[column].counts != 1).nonzero()
            if len(wrong):
                raise self._wrong_count(int(wrong[0]), column)
        pairs = zip(labels, index.heads.values(), strict=True)
        targets = torch.stack([classes - own.start for (_, classes), own in pairs], dim=1)
        return targets[:, 0] if task == "single" else targets

    def target(self, row: int, index: ClassIndex) -> Tensor:
        """One row of ``targets``, at a cost that does not grow with their number.

        Args:
            row: The row, counted from 0.
            index: That of the names of all classes, for the task.

        Raises:
            InputError: As ``targets``, for this row.
        """
        classes = [self._classes_of_row(row, head, index) for head in index.heads]
        if index.task == "multilabel":
            target = torch.zeros(len(index), dtype=torch.uint8)
            target[classes[0]] = 1
            return target
        for head, found in zip(index.heads, classes, strict=True):
            if len(found) != 1:
                raise self._wrong_count(row, label_column(head, index.task))
        pairs = zip(classes, index.heads.values(), strict=True)
        target = torch.tensor([found[0] - own.start for found, own in pairs])
        return target[0] if index.task == "single" else target

    def class_counts(self, names: Sequence[str], task: str | None = None) -> Tensor:
        """Number of rows that have each class, int64 ``[K]``.

        Args:
            names: As for ``targets``.
            task: As for ``label_names``.

        Raises:
            InputError: A label is no class, or there are no labels for the task.
        """
        index = self._index(names, task)
        found = [self._classes(head, index)[1] for head in index.heads]
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
        index = self._index(names, task)
        weights = torch.zeros(len(self), dtype=torch.float64)
        for head in index.heads:
            rows, classes = self._classes(head, index)
            weights.index_add_(0, rows, shares[classes])
        return weights

    def _heads(self, row: int) -> dict[str, tuple[str, ...]]:
        """The labels of a row by head."""
        columns = (name for name in self._table.categories if name.startswith(HEAD))
        found = {name.removeprefix(HEAD): self._table.names(name, row) for name in columns}
        return {head: labels for head, labels in found.items() if labels}

    def _classes_of_row(self, row: int, head: str, index: ClassIndex) -> list[int]:
        """The classes of a row, of one head."""
        column = label_column(head, index.task)
        classes = []
        for label in self._table.names(column, row):
            found = index.find(label, head)
            if found is None:
                raise self._unknown(row, column, label)
            classes.append(found)
        return classes

    def _index(self, names: Sequence[str], task: str | None) -> ClassIndex:
        """The classes of a task whose labels the manifest has."""
        index = ClassIndex(names, task or self._likely_task())
        self._check_columns(index.task, list(index.heads))
        return index

    def _likely_task(self) -> str:
        """A task that takes the labels that there are."""
        present = self._table.categories
        if "labels" in present:
            return "multilabel"
        return "multitask" if any(name.startswith(HEAD) for name in present) else "verb_noun"

    def _check_columns(self, task: str, heads: Sequence[str]) -> None:
        present = self._table.categories
        columns = [label_column(head, task) for head in heads] or [f"{HEAD}HEAD"]
        if not all(column in present for column in columns):
            others = f" and unknown columns {', '.join(self.ignored)}" if self.ignored else ""
            raise InputError(
                f"{self.path}: task {task!r} needs the columns {' and '.join(columns)}, "
                f"got {' and '.join(present) or 'no labels'}{others}"
            )

    def _classes(self, head: str, index: ClassIndex) -> tuple[Tensor, Tensor]:
        """The row and the class of every label of a head, int64 each."""
        column = label_column(head, index.task)
        categories = self._table.categories[column]
        found = [index.find(label, head) for label in categories.names]
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
