"""Accesses of two warps to shared memory with nothing that puts one before the other.

Warps have clocks, and each knows up to which time it is behind the others: barriers tell it. A read
must be behind the last write, and a write behind the last write and all reads; otherwise another
order of the warps has another result. So a missing barrier is found whatever the order that ran.

A write of what is there already does no harm: compilers let several warps store one value. Threads
of one warp are not told apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import SIZES, Kernel

if TYPE_CHECKING:
    from mbt_fast.testing.ptx.blocks import Blocks

OTHER_ORDER = {"mbarrier", "atom", "red"}  # what orders warps beside barriers; not followed here
WORD_BYTES = 4


def applies(kernel: Kernel) -> bool:
    """Whether barriers alone order the warps of a kernel."""
    return not any(code.opcode in OTHER_ORDER for code in kernel.code)


class Touch(NamedTuple):
    """What threads touch, ``[threads, words]``; their warps and lanes are ``[threads, 1]``."""

    words: Array
    warps: Array
    lanes: Array


class Races:
    """Who has read and written what, in blocks that run together.

    Attributes:
        known: Up to which time a warp is behind each warp of its block, ``[warps, warps each]``;
            in its own column its clock.
        brought: What the warps that have arrived at a barrier knew, ``[blocks, barriers, ...]``.
    """

    def __init__(self, blocks: Blocks) -> None:
        """Nothing was touched."""
        self.blocks, self.grain = blocks, _grain(blocks.launch.kernel)
        self.own = blocks.warp_in_block
        self.known = np.zeros((len(self.own), blocks.warps_each), np.int32)
        self._tick(blocks.numbers)
        self.brought = np.zeros((*blocks.arrived.shape, blocks.warps_each), np.int32)
        words = len(blocks.shared.flat) // self.grain
        self.writer, self.written, self.line = (np.zeros(words, np.int32) for _ in range(3))
        self.read_at = np.zeros((words, blocks.warps_each), np.int32)
        self.changes = np.zeros(words, np.int32)  # how often a word has got another value
        self.agreed = np.full_like(self.read_at, -1)  # which of these each warp has stored

    def touch(self, warps: Array, places: Array, size: int, lanes: Array) -> Touch:
        """``size`` bytes at offsets in shared memory ``[n, lanes]``, by those of some warps."""
        row, lane = np.nonzero(lanes)
        words = places[row, lane][:, None] // self.grain + np.arange(size // self.grain)
        return Touch(words, warps[row][:, None], lane[:, None])

    def read(self, step: Step, touch: Touch) -> None:
        """Threads read.

        Raises:
            PtxError: Another warp wrote, and no barrier is between.
        """
        words, own = touch.words, self.own[touch.warps]
        late = self.written[words] > self.known[touch.warps, self.writer[words]]
        if late.any():  # one that has stored the same value itself may read it
            late &= self.agreed[words, own] != self.changes[words]
            self._require(step, touch, late, "reads what another warp writes")
        self.read_at[words, own] = self.known[touch.warps, own]

    def write(self, step: Step, touch: Touch, data: Array, line: int) -> None:
        """Threads are about to write bytes, uint8 ``[threads, size]``, as a line tells them.

        Raises:
            PtxError: Another warp reads, or writes something else, and no barrier is between.
        """
        words, own = touch.words, self.own[touch.warps]
        new = data.reshape(*words.shape, self.grain)
        changed = (self.blocks.shared.flat.reshape(-1, self.grain)[words] != new).any(-1)
        if changed.any():
            late = changed & (self.written[words] > self.known[touch.warps, self.writer[words]])
            self._require(step, touch, late, "writes what another warp writes")
            read = (self.read_at[words] > self.known[touch.warps]).any(-1)
            self._require(step, touch, changed & read, "writes what another warp reads")
            where, by = words[changed], np.broadcast_to(own, words.shape)[changed]
            self.writer[where], self.line[where] = by, line
            self.written[where] = np.broadcast_to(self.known[touch.warps, own], words.shape)[
                changed
            ]
            self.changes[where] += 1
        self.agreed[words, own] = self.changes[words]

    def arrive(self, warps: Array, barriers: Array) -> None:
        """Warps come to barriers: who waits there will be behind what they have done."""
        at = self.blocks.block_of_warp[warps], barriers
        np.maximum.at(self.brought, at, self.known[warps])
        self._tick(warps)

    def open(self, warps: Array, barriers: Array, full: Array) -> None:
        """Warps go on from barriers, and the ``full`` ones, bool ``[blocks, barriers]``, end."""
        brought = self.brought[self.blocks.block_of_warp[warps], barriers]
        self.known[warps] = np.maximum(self.known[warps], brought)
        self.brought[full] = 0

    def meet(self) -> None:
        """All warps of each block meet."""
        each = self.known.shape[1]
        together = self.known.reshape(-1, each, each).max(1)
        self.known = np.repeat(together, each, 0)
        self._tick(self.blocks.numbers)

    def _tick(self, warps: Array) -> None:
        self.known[warps, self.own[warps]] += 1

    def _require(self, step: Step, touch: Touch, bad: Array, what: str) -> None:
        if not bad.any():
            return
        thread, word = (int(i) for i in np.argwhere(bad)[0])
        line = int(self.line[touch.words[thread, word]])
        message = f"it {what}, with no barrier between them; last written by line {line}"
        self.blocks.fail(message, step.pc, int(touch.warps[thread, 0]), int(touch.lanes[thread, 0]))


def _grain(kernel: Kernel) -> int:
    """Bytes of the smallest part of shared memory that an instruction touches alone."""
    sizes = [
        SIZES[code.type]
        for code in kernel.code
        if code.opcode in ("ld", "st") and any(m.startswith("shared") for m in code.modifiers)
    ]
    return min([WORD_BYTES, *sizes])
