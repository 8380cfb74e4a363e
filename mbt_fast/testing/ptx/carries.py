"""Arithmetic of numbers longer than a register: sums that give and take a carry."""

from typing import Any

import numpy as np

from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.operands import reader, writer
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import Instruction

LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


@op("add.cc", "addc", "sub.cc", "subc", "mad.lo.cc", "mad.hi.cc", "madc")
def long_arithmetic(code: Instruction) -> Run:
    """Of 32 bits. Those that end in c take the carry, or borrow; ``.cc`` leaves it."""
    if code.type not in ("u32", "s32", "b32"):
        raise PtxError(f"carries of {code.type} are not implemented")
    if code.has("hi") and code.type == "s32":
        raise PtxError("the upper half of signed products is not implemented with carries")
    put, parts = writer(code.operands[0], "u32"), [reader(x, "u32") for x in code.operands[1:]]
    takes, leaves = code.opcode.endswith("c"), code.has("cc")
    subtracts, multiplies = code.opcode.startswith("sub"), code.opcode.startswith("mad")

    def run(step: Step) -> None:
        carries = _carries(step)
        values = [np.asarray(part(step), np.uint64) for part in parts]
        if multiplies:
            product = values[0] * values[1]
            values = [product >> HALF if code.has("hi") else product & LOW, values[2]]
        carry: Any = carries[step.at].astype(np.uint64) if takes else np.uint64(0)
        first, second = values
        total = first - second - carry if subtracts else first + second + carry
        put(step, (total & LOW).astype(np.uint32))
        if leaves:
            left = step.full((total >> HALF) & np.uint64(1)).astype(bool)
            carries[step.at] = np.where(step.lanes, left, carries[step.at])

    return run


def _carries(step: Step) -> Array:
    """The carry of each thread, bool ``[all warps, 32]``."""
    state = step.blocks.state
    if "carries" not in state:
        state["carries"] = np.zeros(step.blocks.pc.shape, bool)
    carries: Array = state["carries"]
    return carries
