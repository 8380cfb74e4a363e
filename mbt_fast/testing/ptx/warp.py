"""What the threads of a warp do together: shuffles, votes, their barrier."""

from typing import Any

import numpy as np

from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.operands import reader, writer
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import Immediate, Instruction, Operand, Pair, Sink

LANES = np.arange(32)


@op("bar.warp", "barrier.warp")
def warp_barrier(code: Instruction) -> Run:
    """All threads of the mask meet here."""
    who = _members(code.operands[0])
    return lambda step: meet(step, who(step))


def _members(operand: Operand) -> Any:
    """A function that reads a mask of lanes: bool ``[n, 32]``, the same in all lanes of a warp."""
    if isinstance(operand, Immediate) and operand.value % 2**32 == 0:
        raise PtxError("the mask of threads must not be empty")
    take = reader(operand, "u32")

    def members(step: Step) -> Array:
        mask = step.full(take(step))
        here = step.lanes
        first = mask[np.arange(step.n), here.argmax(1)]
        step.require(mask == first[:, None], "threads of a warp must name the same mask")
        who = (first[:, None] >> LANES.astype(np.uint32)) & np.uint32(1) == 1
        step.require(who, "a thread must be in the mask that it names")
        return who

    return members


def meet(step: Step, who: Array) -> bool | None:
    """Let threads wait until all of ``who`` [n, 32] of their warp are here; None if they are."""
    complete = step.converged(who)
    if complete.all():
        return None
    pc, at, blocks = step.pc, step.at, step.blocks

    def ready() -> Array:
        here = blocks.pc[at] == pc
        together = np.all(here | ~who | ~blocks.live[at], axis=1)
        return np.broadcast_to(together[:, None], step.shape)

    return step.park(step.lanes, ready, "the other threads of a warp")


@op("shfl")
def shfl(code: Instruction) -> Run:
    """Take the value of another lane."""
    target, source, offset, clamp, mask = code.operands
    holds = None
    if isinstance(target, Pair):
        holds, target = writer(target.second, "pred"), target.first
    put = writer(target, "b32")
    value, by, limits = (reader(operand, "u32") for operand in (source, offset, clamp))
    mode = next(m for m in code.modifiers if m in ("up", "down", "bfly", "idx"))
    who = _members(mask)

    def run(step: Step) -> bool | None:
        members = who(step)
        if meet(step, members):
            return True
        lane, valid = _source_lane(mode, by(step), limits(step))
        lane, valid = step.full(lane), step.full(valid)
        given = np.take_along_axis(members & step.lanes, lane, 1)
        step.require(given, "the lane that is read takes no part")
        put(step, np.take_along_axis(step.full(value(step)), lane, 1))
        if holds is not None:
            holds(step, valid)
        return None

    return run


def _source_lane(mode: str, by: Any, limits: Any) -> tuple[Array, Array]:
    """The lane that each lane reads, and whether that is in range; if not, it reads its own."""
    by, limits = np.asarray(by, np.int64) & 31, np.asarray(limits, np.int64)
    clamp, segment = limits & 31, limits >> 8 & 31
    lowest = LANES & segment
    highest = lowest | (clamp & ~segment)
    if mode == "up":
        lane = LANES - by
        valid = lane >= highest
    else:
        lane = {"down": LANES + by, "bfly": LANES ^ by, "idx": lowest | (by & ~segment)}[mode]
        valid = lane <= highest
    return np.where(valid, lane, LANES), valid


@op("vote")
def vote(code: Instruction) -> Run:
    """``all``, ``any``, ``uni`` of a predicate, or its bits by lane."""
    mode = next(m for m in code.modifiers if m in ("all", "any", "uni", "ballot"))
    put = writer(code.operands[0], "b32" if mode == "ballot" else "pred")
    holds, who = reader(code.operands[1], "pred"), _members(code.operands[2])

    def run(step: Step) -> bool | None:
        members = who(step)
        if meet(step, members):
            return True
        counts = members & step.lanes
        true = step.full(holds(step)) & counts
        some, every = true.any(1), np.all(true | ~counts, axis=1)
        if mode == "ballot":
            bits = (true.astype(np.uint64) << LANES.astype(np.uint64)).sum(1).astype(np.uint32)
            put(step, bits[:, None])
        else:
            answer = {"all": every, "any": some, "uni": every | ~some}[mode]
            put(step, answer[:, None])
        return None

    return run


@op("elect")
def elect(code: Instruction) -> Run:
    """Choose the lowest thread of a mask: its lane, and a predicate that is true in it."""
    target = code.operands[0]
    lane, chosen = (target.first, target.second) if isinstance(target, Pair) else (Sink(), target)
    put, holds, who = writer(lane, "b32"), writer(chosen, "pred"), _members(code.operands[1])

    def run(step: Step) -> bool | None:
        members = who(step)
        if meet(step, members):
            return True
        first = (members & step.lanes).argmax(1)[:, None]
        put(step, step.full(first))
        holds(step, first == LANES)
        return None

    return run


@op("activemask")
def activemask(code: Instruction) -> Run:
    """Bits of the threads that are here."""
    put = writer(code.operands[0], "b32")

    def run(step: Step) -> None:
        bits = (step.lanes.astype(np.uint64) << LANES.astype(np.uint64)).sum(1)
        put(step, bits.astype(np.uint32)[:, None])

    return run
