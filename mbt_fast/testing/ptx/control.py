"""Branches, the end of a thread, and barriers of a block."""

from typing import Any

import numpy as np

from mbt_fast.testing.ptx.blocks import BARRIERS, GONE, Blocks
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.operands import reader
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Step
from mbt_fast.testing.ptx.syntax import Immediate, Instruction, Symbol


def branch(code: Instruction, labels: dict[str, int]) -> Run:
    """Go on at a label. The guard has chosen the threads."""
    (label,) = code.operands
    if not isinstance(label, Symbol) or label.name not in labels:
        raise PtxError(f"the program has no label {label}")
    target = labels[label.name]

    def run(step: Step) -> bool:
        step.go_to(step.lanes, target)
        return True

    return run


@op("ret", "exit")
def leave(code: Instruction) -> Run:
    """The end of a thread. Barriers no longer wait for it."""

    def run(step: Step) -> bool:
        step.go_to(step.lanes, GONE)
        release(step.blocks)
        return True

    return run


@op("trap")
def trap(code: Instruction) -> Run:
    """Stop: the kernel itself found something wrong."""

    def run(step: Step) -> bool:
        step.fail("the kernel stopped itself")

    return run


@op("bar", "barrier")
def bar(code: Instruction) -> Run:
    """``bar.sync`` and ``bar.arrive``."""
    waits = code.has("sync")
    if not waits and not code.has("arrive"):
        raise PtxError("of barriers only sync and arrive are implemented")
    which = reader(code.operands[0], "u32")
    count = reader(code.operands[1], "u32") if len(code.operands) > 1 else None
    simple = waits and count is None and code.operands[0] == Immediate(0)

    def run(step: Step) -> bool | None:
        step.whole_warps()
        blocks = step.blocks
        if simple and step.n == len(blocks.numbers) and not blocks.arrived.any():
            if blocks.races is not None:
                blocks.races.meet()
            return None  # all are here
        barrier, block = _numbers(step, which(step)), step.block
        step.require(barrier[:, None] < BARRIERS, f"a block has {BARRIERS} barriers")
        threads = np.zeros(step.n, np.int64) if count is None else _numbers(step, count(step))
        step.require(threads[:, None] % 32 == 0, "a barrier counts whole warps: multiples of 32")
        open_ = blocks.arrived[block, barrier] > 0
        agreed = ~open_ | (blocks.expected[block, barrier] == threads)
        step.require(agreed[:, None], "threads at one barrier must name the same count")
        blocks.expected[block, barrier] = threads
        np.add.at(blocks.arrived, (block, barrier), 1)
        fits = (threads == 0) | (blocks.arrived[block, barrier] * 32 <= threads)
        step.require(fits[:, None], "more threads come to the barrier than it waits for")
        if blocks.races is not None:
            blocks.races.arrive(step.warps, barrier)
        step.advance(step.lanes)
        if waits:
            blocks.barrier[step.at] = barrier
            blocks.parked[step.at] = step.lanes
        release(blocks)
        return True

    return run


def _numbers(step: Step, value: Any) -> np.ndarray:
    """An operand that is the same in all threads of a warp, ``[n]``."""
    every = step.full(value)
    first = every[np.arange(step.n), step.lanes.argmax(1)]
    step.require(every == first[:, None], "threads of a warp must name the same barrier")
    return first.astype(np.int64)


def release(blocks: Blocks) -> None:
    """Open the barriers at which all warps that they wait for have arrived."""
    if not blocks.arrived.any():
        return
    live = blocks.live.any(1).reshape(blocks.count, -1).sum(1)
    expected = np.where(blocks.expected > 0, blocks.expected // 32, live[:, None])
    full = (blocks.arrived >= expected) & (blocks.arrived > 0)
    if not full.any():
        return
    blocks.arrived[full] = 0
    waiting = blocks.barrier >= 0
    opened = waiting & full[blocks.block_of_warp, np.maximum(blocks.barrier, 0)]
    if blocks.races is not None:
        blocks.races.open(np.flatnonzero(opened), blocks.barrier[opened], full)
    blocks.barrier[opened] = -1
    blocks.parked[opened] = False


@op("prefetchu", "applypriority", "discard", "nanosleep", "griddepcontrol")
def hint(code: Instruction) -> Run:
    """What changes speed only."""
    return lambda step: None
