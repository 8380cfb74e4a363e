"""What an instruction sees of the machine: a group of warps at the same place in the program."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mbt_fast.testing.ptx.errors import PtxError

if TYPE_CHECKING:
    from mbt_fast.testing.ptx.blocks import Blocks

Array = np.ndarray[Any, Any]


Reason = str | Callable[[], str]


class Step:
    """Some warps of the blocks that run together, all at one instruction.

    A value of all threads of the group is an array ``[n, 32]``: warps, lanes.

    Each warp of it has an active thread.

    Attributes:
        blocks: Everything that the blocks have: registers, shared memory, barriers.
        at: Which warps of ``blocks``: a slice, or an array of indices.
        mask: Which threads are active, bool ``[n, 32]``; ``None`` if all are.
        files: Registers by type and index, each ``[all warps, 32]``; index them with ``at``.
        n: How many warps.
        pc: Index of the instruction.
    """

    __slots__ = ("at", "blocks", "files", "mask", "n", "pc")

    def __init__(self, blocks: Blocks, at: slice | Array, n: int, mask: Array | None) -> None:
        """Take the warps ``at`` of some blocks."""
        self.blocks, self.at, self.n, self.mask = blocks, at, n, mask
        self.files = blocks.files
        self.pc = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Warps and lanes."""
        return self.n, 32

    @property
    def lanes(self) -> Array:
        """Active threads, bool ``[n, 32]``."""
        return np.ones(self.shape, bool) if self.mask is None else self.mask

    @property
    def warps(self) -> Array:
        """Numbers of the warps in ``blocks``, ``[n]``."""
        return self.blocks.numbers[self.at]

    @property
    def threads(self) -> Array:
        """Numbers of the threads through all blocks that run together, ``[n, 32]``."""
        return self.warps[:, None] * 32 + np.arange(32)

    @property
    def block(self) -> Array:
        """Row of each warp's block in what ``blocks`` has per block, ``[n]``."""
        return self.blocks.block_of_warp[self.at]

    def narrowed(self, mask: Array) -> Step:
        """Fewer active threads, ``mask`` [n, 32], of those warps that have any."""
        some = mask.any(1)
        if some.all():
            step = Step(self.blocks, self.at, self.n, None if mask.all() else mask)
        else:
            mask = mask[some]
            step = Step(self.blocks, self.warps[some], len(mask), None if mask.all() else mask)
        step.pc = self.pc
        return step

    def full(self, value: Any) -> Array:
        """A value for each thread, ``[n, 32]``; not to be written to."""
        return np.broadcast_to(value, self.shape)

    def go_to(self, lanes: Array, pc: int) -> None:
        """Send some of the group's threads to an instruction."""
        place = self.blocks.pc[self.at]
        self.blocks.pc[self.at] = np.where(lanes, pc, place)

    def advance(self, lanes: Array) -> None:
        """Send some of the group's threads to the next instruction."""
        self.go_to(lanes, self.pc + 1)

    def park(self, lanes: Array, ready: Callable[[], Array], reason: Reason) -> bool:
        """Let some active threads wait here; the other active ones go on.

        When nothing else can run ``ready()`` is asked, bool ``[n, 32]``, and the threads for which
        it is true execute this instruction again.

        Args:
            lanes: Who waits, bool ``[n, 32]``.
            ready: Says whose wait is over.
            reason: What they wait for, for the message if they wait for ever.

        Returns:
            True, which an instruction that moved its threads returns.
        """
        self.go_to(lanes, self.pc)
        self.advance(self.lanes & ~lanes)
        self.blocks.park(self, lanes, ready, reason)
        return True

    def converged(self, members: Array) -> Array:
        """Of which warps all threads that still run and are ``members`` [n, 32] are active here."""
        expected = members & self.blocks.live[self.at]
        return np.all(self.lanes | ~expected, axis=1)

    def whole_warps(self) -> None:
        """Refuse a warp of which some threads are elsewhere: ``.aligned`` instructions.

        Raises:
            PtxError: Names a thread that is not here.
        """
        if self.mask is not None:
            missing = self.blocks.live[self.at] & ~self.mask
            if missing.any():
                self.fail("all threads of a warp must execute this; one is elsewhere", missing)

    def fail(self, message: str, lanes: Array | None = None) -> NoReturn:
        """Stop at the first of some threads of the group.

        Raises:
            PtxError: Names the instruction and the thread.
        """
        bad = self.lanes if lanes is None else np.broadcast_to(lanes, self.shape)
        row, lane = (int(i) for i in np.argwhere(bad)[0])
        self.blocks.fail(message, self.pc, int(self.warps[row]), lane)

    def require(self, good: Array, message: str) -> None:
        """Stop if a condition does not hold in an active thread.

        Raises:
            PtxError: Names the instruction and the first such thread.
        """
        bad = ~np.broadcast_to(good, self.shape)
        if self.mask is not None:
            bad = bad & self.mask
        if bad.any():
            self.fail(message, bad)


__all__ = ["Array", "PtxError", "Step"]
