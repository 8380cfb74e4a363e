"""Bulk copies in flight. They complete as late as a program that waits for them can tell."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mbt_fast.testing.ptx.blocks import Blocks
from mbt_fast.testing.ptx.descriptor import CHUNK_BYTES
from mbt_fast.testing.ptx.step import Array

FRESH = 0xFF  # of targets that a copy has yet to fill: NaN in every float type


def chunks_of(blocks: Blocks) -> Array:
    """Shared memory of some blocks as chunks, uint8 ``[chunks, 16]``."""
    return blocks.shared.flat.reshape(-1, CHUNK_BYTES)


@dataclass(eq=False)
class BulkLoad:
    """A copy from global to shared memory.

    Args:
        line: Of the PTX text.
        places: Of the target's chunks in the shared memory of all blocks, in order.
        read: Gives the source, uint8 ``[chunks, 16]``.
    """

    line: int
    places: Array
    read: Callable[[], Array]

    @property
    def size(self) -> int:
        """Bytes that its mbarrier is told of, those outside of a tensor included."""
        return len(self.places) * CHUNK_BYTES

    def start(self, blocks: Blocks) -> None:
        """From here on nobody knows what the target holds."""
        chunks_of(blocks)[self.places // CHUNK_BYTES] = FRESH
        if blocks.proxies is not None:
            blocks.proxies.land(self.places)

    def land(self, blocks: Blocks) -> str | None:
        """Fill the target; returns what is wrong if a store came between."""
        chunks, index = chunks_of(blocks), self.places // CHUNK_BYTES
        line = blocks.proxies.stored_line(self.places) if blocks.proxies is not None else None
        if line is not None or (chunks[index] != FRESH).any():
            culprit = "another copy" if line is None else f"line {line}"
            return f"{culprit} wrote to the target of the copy of line {self.line} in flight"
        chunks[index] = self.read()
        return None


@dataclass(eq=False)
class BulkStore:
    """A copy or a sum from shared to global memory.

    Args:
        line: Of the PTX text.
        places: Of the source's chunks in the shared memory of all blocks, in order.
        source: What they hold when it is issued, uint8 ``[chunks, 16]``.
        write: Takes the source to global memory.
    """

    line: int
    places: Array
    source: Array
    write: Callable[[Array], None]
    is_read: bool = False

    def read(self, blocks: Blocks) -> str | None:
        """The hardware has read the source by now; returns what is wrong if it has changed."""
        if self.is_read:
            return None
        self.is_read = True
        if np.array_equal(chunks_of(blocks)[self.places // CHUNK_BYTES], self.source):
            return None
        return f"the source of the bulk copy of line {self.line} changed before it was read"


@dataclass(eq=False)
class BulkGroups:
    """Bulk async-groups of one thread, the oldest first."""

    uncommitted: list[BulkStore] = field(default_factory=list)
    committed: list[list[BulkStore]] = field(default_factory=list)

    def commit(self) -> None:
        """Make a group of what was issued since the last."""
        self.committed.append(self.uncommitted)
        self.uncommitted = []

    def wait(self, blocks: Blocks, pending: int, *, only_reads: bool) -> str | None:
        """Complete all groups but the ``pending`` latest, or only what they read."""
        count = max(len(self.committed) - pending, 0)
        for store in (store for group in self.committed[:count] for store in group):
            problem = store.read(blocks)
            if problem:
                return problem
            if not only_reads:
                store.write(store.source)
        if not only_reads:
            del self.committed[:count]
        return None

    def in_flight(self) -> Iterator[BulkStore]:
        """All that may not be complete."""
        yield from (store for group in self.committed for store in group)
        yield from self.uncommitted
