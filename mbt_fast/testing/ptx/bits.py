"""Logic, shifts and fields of bits."""

from typing import Any

import numpy as np

from mbt_fast.testing.ptx.arithmetic import elementwise
from mbt_fast.testing.ptx.operands import NUMPY, reader, writer
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Step
from mbt_fast.testing.ptx.syntax import SIZES, Instruction

LOGIC: dict[str, Any] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.bitwise_not,
}


@op(*LOGIC)
def logic(code: Instruction) -> Run:
    """Bit by bit, on words or predicates."""
    return elementwise(code, LOGIC[code.opcode])


@op("shl", "shr")
def shift(code: Instruction) -> Run:
    """Shift; by the width or more it leaves zeros, or the sign."""
    kind = code.type
    bits = 8 * SIZES[kind]
    put, take = writer(code.operands[0], kind), reader(code.operands[1], kind)
    count = reader(code.operands[2], "u32")
    move = np.left_shift if code.opcode == "shl" else np.right_shift
    signed = kind.startswith("s") and code.opcode == "shr"
    as_type = NUMPY[kind]

    def run(step: Step) -> None:
        by = count(step)
        value = take(step)
        if signed:
            put(step, move(value, np.minimum(by, bits - 1).astype(as_type)))
        elif np.ndim(by) == 0 and by < bits:
            put(step, move(value, by.astype(as_type)))
        else:
            shifted = move(value, np.minimum(by, bits - 1).astype(as_type))
            put(step, np.where(by < bits, shifted, as_type(0)))

    return run


@op("bfe")
def bfe(code: Instruction) -> Run:
    """A field of bits, extended by zeros or, signed, by its highest bit."""
    kind = code.type
    bits = 8 * SIZES[kind]
    put, take = writer(code.operands[0], kind), reader(code.operands[1], kind)
    start, length = (reader(operand, "u32") for operand in code.operands[2:4])
    as_type, wide = NUMPY[kind], NUMPY["s64" if kind[0] == "s" else "u64"]

    def run(step: Step) -> None:
        value = np.asarray(take(step)).astype(wide)
        first = np.asarray(start(step), np.int64) & 0xFF
        size = np.asarray(length(step), np.int64) & 0xFF
        last = np.minimum(first + size - 1, bits - 1)
        # Left until the field's last bit is the top one, then right.
        up = np.clip(63 - last, 0, 63)
        down = np.clip(up + np.minimum(first, bits - 1), 0, 63)
        field = (value << up.astype(wide)) >> down.astype(wide)
        sign = value >> wide(bits - 1) if kind[0] == "s" else wide(0)
        field = np.where(first >= bits, sign, field)
        put(step, np.where(size == 0, wide(0), field).astype(as_type))

    return run
