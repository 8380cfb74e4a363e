"""Products of wgmma that are issued and not yet waited for.

Until its wait a product owns its registers: the accumulators read as NaN, and none may be written.
The operands belong to it too. They are read when it is issued, and again when it is waited for; the
hardware reads them somewhere between, so a difference is an error.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mbt_fast.testing.ptx import fragments
from mbt_fast.testing.ptx.descriptor import CHUNK_BYTES
from mbt_fast.testing.ptx.step import Array

OWNED = 0xFFFFFFFF  # a NaN that arithmetic does not make
Registers = tuple[int, ...]  # indices of accumulators


class SharedOperand:
    """A matrix in shared memory.

    Args:
        flat: Shared memory of all blocks, uint8.
        places: Offsets in it of 16-byte chunks, int64 ``[groups, chunks, chunks]``.
    """

    def __init__(self, flat: Array, places: Array) -> None:
        """Read it for the first time."""
        self._chunks = flat.view(np.uint16).reshape(-1, CHUNK_BYTES // 2)
        self.places = places
        self.values: Array = self._read(slice(None))

    def is_unchanged(self, rows: Array) -> bool:
        """Read the operands of some groups again."""
        return np.array_equal(self._read(rows), self.values[rows])

    def _read(self, rows: slice | Array) -> Array:
        return self._chunks[self.places[rows] // CHUNK_BYTES]


class RegisterOperand:
    """The matrix A in four registers.

    Args:
        file: All registers of 32 bits, ``[registers, warps, 32]``.
        indices: Of the four.
        warps: Of each group, ``[groups, 4]``.
    """

    def __init__(self, file: Array, indices: Registers, warps: Array) -> None:
        """Read it for the first time."""
        self._file, self._indices, self._warps = file, np.array(indices)[:, None, None], warps
        self.values: Array = self._read(slice(None))

    def is_unchanged(self, rows: Array) -> bool:
        """Read the operands of some groups again."""
        return np.array_equal(self._read(rows), self.values[:, rows])

    def _read(self, rows: slice | Array) -> Array:
        return self._file[self._indices, self._warps[rows]]


Operand = SharedOperand | RegisterOperand


@dataclass(eq=False)
class Product:
    """One instruction, of the groups that issued it together.

    Args:
        line: Of the PTX text.
        accumulators: Where it adds to.
        operands: What it reads.
    """

    line: int
    accumulators: Registers
    operands: tuple[Operand, ...]


@dataclass(eq=False)
class Group:
    """What one warp group has in flight; the numbers are its rows in products and sums.

    Args:
        uncommitted: Products since the last commit.
        committed: Products of each wgmma-group that is not waited for, the oldest first.
        sums: By accumulators: the matrices of several groups, and which of them is this group's.
    """

    uncommitted: list[tuple[Product, int]] = field(default_factory=list)
    committed: list[list[tuple[Product, int]]] = field(default_factory=list)
    sums: dict[Registers, tuple[Array, int]] = field(default_factory=dict)

    def in_flight(self) -> Iterable[tuple[Product, int]]:
        """All products that are not waited for."""
        yield from (entry for group in self.committed for entry in group)
        yield from self.uncommitted

    def overlapping(self, accumulators: Registers) -> Registers | None:
        """Accumulators of a product in flight that shares some, but not all, of these."""
        wanted = set(accumulators)
        others = (other for other in self.sums if other != accumulators)
        return next((other for other in others if not wanted.isdisjoint(other)), None)

    def wait(self, pending: int) -> list[tuple[Product, int]]:
        """Complete all wgmma-groups but the ``pending`` latest; returns their products."""
        count = max(len(self.committed) - pending, 0)
        done = [entry for group in self.committed[:count] for entry in group]
        del self.committed[:count]
        return done


def start_sums(
    groups: list[Group], accumulators: Registers, file: Array, warps: Array, kind: Any
) -> Array:
    """Sums that a product adds to: those in flight, or else what the registers hold.

    Args:
        groups: Who issues.
        accumulators: Indices of the registers.
        file: All registers of 32 bits, ``[registers, warps, 32]``, uint32.
        warps: Of each group, ``[groups, 4]``.
        kind: numpy's type of a sum.

    Returns:
        ``[groups, 64, N]``, to be changed in place.
    """
    held = [group.sums.get(accumulators) for group in groups]
    if None not in held:
        found = [entry for entry in held if entry is not None]
        sums = found[0][0]
        if len(sums) == len(groups) and all(
            entry[0] is sums and entry[1] == row for row, entry in enumerate(found)
        ):
            return sums
    indices = np.array(accumulators)[:, None, None]
    start = fragments.accumulator(file[indices, warps].view(kind))
    for row, entry in enumerate(held):
        if entry is not None:
            start[row] = entry[0][entry[1]]
    file[indices, warps] = OWNED
    for row, group in enumerate(groups):
        group.sums[accumulators] = start, row
    return start


def finish(groups: list[Group], done: list[Registers], file: Array, warps: Array) -> Registers:
    """Put sums into registers.

    Args:
        groups: Whose products are complete.
        done: For each of these groups the same: accumulators that no product owns any more.
        file: As for ``start_sums``.
        warps: As for ``start_sums``.

    Returns:
        Accumulators that were written to while a product owned them; empty if none were.
    """
    for accumulators in done:
        indices = np.array(accumulators)[:, None, None]
        if (file[indices, warps] != OWNED).any():
            return accumulators
        held = [group.sums.pop(accumulators) for group in groups]
        sums = np.stack([matrices[row] for matrices, row in held])
        file[indices, warps] = fragments.accumulator_registers(sums).view(np.uint32)
    return ()
