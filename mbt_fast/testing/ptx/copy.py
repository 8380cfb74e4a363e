"""``cp.async``: copies from global to shared memory that end when a thread waits for them.

Until then their destination is 0xFF, NaN in every float type, and the source is read as late as it
may be: what a kernel reads too early, or overwrites too early, shows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mbt_fast.testing.ptx import shared_access
from mbt_fast.testing.ptx.blocks import Blocks
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.memory import PROCESS, gather, global_places
from mbt_fast.testing.ptx.move import address_reader
from mbt_fast.testing.ptx.operands import immediate, reader
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import Immediate, Instruction


@dataclass
class Copy:
    """One instruction's copies; arrays are ``[n, 32]``."""

    at: slice | Array  # warps
    left: Array  # which threads' copies have not ended
    group: Array  # the number of the thread's group that it belongs to
    to: Array  # offset in shared memory
    source: Array  # global address
    given: Array  # bytes that are read; the others are zero
    size: int  # bytes that are written
    line: int  # of the instruction


class Copies:
    """The copies of all threads of some blocks.

    Attributes:
        committed: How many groups each thread has closed, ``[warps, 32]``.
    """

    def __init__(self, blocks: Blocks) -> None:
        """Start with none."""
        self.blocks = blocks
        self.committed = np.zeros(blocks.pc.shape, np.int64)
        self.pending: list[Copy] = []

    @classmethod
    def of(cls, blocks: Blocks) -> "Copies":
        """Those of some blocks."""
        if "cp.async" not in blocks.state:
            blocks.state["cp.async"] = cls(blocks)
        return blocks.state["cp.async"]

    def wait(self, step: Step, newest: Any) -> None:
        """End the copies of a group's threads but those of their ``newest`` last groups."""
        limit = np.full(self.committed.shape, -1)
        limit[step.at] = np.where(step.lanes, self.committed[step.at] - newest, -1)
        for copy in self.pending:
            due = copy.left & (copy.group < limit[copy.at])
            if due.any():
                warps = self.blocks.numbers[copy.at]
                shared_access.store(step, copy.to, _data(copy, due), copy.line, due, warps)
                copy.left &= ~due
        self.pending = [copy for copy in self.pending if copy.left.any()]


def _data(copy: Copy, due: Array) -> Array:
    """What copies that are due bring: bytes ``[n, 32, size]``."""
    data = np.zeros((*due.shape, copy.size), np.uint8)
    whole = due & (copy.given == copy.size)
    data[whole] = gather(PROCESS, global_places(copy.source[whole]), np.uint8, copy.size)
    for row, lane in np.argwhere(due & (copy.given > 0) & ~whole):
        start, count = int(global_places(copy.source[row, lane])), int(copy.given[row, lane])
        data[row, lane, :count] = PROCESS[start : start + count]
    return data


@op("cp.async")
def cp_async(code: Instruction) -> Run:
    """Start copies of 4, 8 or 16 bytes; of those beyond the source's size zeros are written."""
    if not any(m in ("shared", "shared::cta") for m in code.modifiers) or code.has("bulk"):
        raise PtxError("only cp.async from global to shared memory is implemented")
    target = address_reader(code.operands[0], "shared")
    source = address_reader(code.operands[1], "global")
    count = code.operands[2]
    if not isinstance(count, Immediate):
        raise PtxError("the size of a copy must be a number")
    size = int(immediate(count, "u32"))
    given = reader(code.operands[3], "u32") if len(code.operands) > 3 else None

    def run(step: Step) -> None:
        shared, copies = step.blocks.shared, Copies.of(step.blocks)
        to = shared.places(step, step.full(target(step)), size)
        address = step.full(source(step))
        asked = np.array(step.full(size if given is None else given(step)), np.int64)
        step.require(asked <= size, f"the size of the source must be at most {size}")
        lanes = step.lanes.copy()
        step.require(address % size == 0, f"the address must be a multiple of {size}")
        for part in np.unique(asked[lanes]):
            if part:
                inside = step.blocks.launch.memory.holds(address, int(part))
                step.require(inside | (asked != part), "the source is outside of all tensors")
        shared_access.store(step, to, np.full((*step.shape, size), 0xFF, np.uint8), code.line)
        group = copies.committed[step.at].copy()
        copy = Copy(step.at, lanes, group, to, np.array(address), asked, size, code.line)
        copies.pending.append(copy)

    return run


@op("cp.async.commit_group")
def commit_group(code: Instruction) -> Run:
    """Close a group of copies."""

    def run(step: Step) -> None:
        Copies.of(step.blocks).committed[step.at] += step.lanes

    return run


@op("cp.async.wait_group")
def wait_group(code: Instruction) -> Run:
    """Wait for all groups but the newest ones."""
    newest = reader(code.operands[0], "u32")
    return lambda step: Copies.of(step.blocks).wait(step, np.int64(newest(step)))


@op("cp.async.wait_all")
def wait_all(code: Instruction) -> Run:
    """Wait for all copies, those of no group too."""

    def run(step: Step) -> None:
        copies = Copies.of(step.blocks)
        copies.committed[step.at] += step.lanes
        copies.wait(step, 0)

    return run
