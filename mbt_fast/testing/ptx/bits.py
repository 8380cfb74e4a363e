"""Logic, shifts, and single bits and bytes of words."""

from typing import Any

import numpy as np

from mbt_fast.testing.ptx.arithmetic import elementwise
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.operands import NUMPY, reader, writer
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
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


def _count_ones(value: Any) -> Array:
    octets = np.ascontiguousarray(value)[..., None].view(np.uint8)
    return np.unpackbits(octets, axis=-1).sum(-1, dtype=np.uint32)


def _leading_zeros(value: Any) -> Array:
    """By halving: as many of the upper bits as are all zero."""
    value, zeros = np.array(value), np.zeros(np.shape(value), np.uint32)
    bits = 8 * value.dtype.itemsize
    half = bits // 2
    while half:
        empty = value >> value.dtype.type(bits - half) == 0
        zeros += np.where(empty, np.uint32(half), np.uint32(0))
        value = np.where(empty, value << value.dtype.type(half), value)
        half //= 2
    return zeros + (value == 0)


COUNTS: dict[str, Any] = {"popc": _count_ones, "clz": _leading_zeros}


@op(*COUNTS)
def count(code: Instruction) -> Run:
    """How many bits are set, or are zero above the highest one."""
    put, take = writer(code.operands[0], "u32"), reader(code.operands[1], f"u{code.type[1:]}")
    function = COUNTS[code.opcode]
    return lambda step: put(step, function(take(step)))


@op("brev")
def brev(code: Instruction) -> Run:
    """Bits in the opposite order."""
    kind = f"u{code.type[1:]}"
    put, take = writer(code.operands[0], kind), reader(code.operands[1], kind)

    def run(step: Step) -> None:
        value = np.asarray(take(step))
        octets = np.ascontiguousarray(value)[..., None].view(np.uint8)
        flipped = np.packbits(np.unpackbits(octets, axis=-1, bitorder="little"), axis=-1)
        put(step, np.ascontiguousarray(flipped[..., ::-1]).view(NUMPY[kind])[..., 0])

    return run


@op("prmt")
def prmt(code: Instruction) -> Run:
    """Any four of the eight bytes of two words; bit 3 of a choice spreads the byte's sign."""
    if code.modifiers != ("b32",):
        raise PtxError("of prmt only the default mode is implemented")
    put = writer(code.operands[0], "u32")
    low, high, choice = (reader(operand, "u32") for operand in code.operands[1:4])

    def run(step: Step) -> None:
        both = np.asarray(low(step), np.uint64) | np.asarray(high(step), np.uint64) << np.uint64(32)
        chosen = np.asarray(choice(step), np.uint64)
        out: Any = np.uint64(0)
        for position in range(4):
            nibble = chosen >> np.uint64(4 * position) & np.uint64(15)
            byte = both >> (nibble & np.uint64(7)) * np.uint64(8) & np.uint64(0xFF)
            sign = np.where(byte >> np.uint64(7), np.uint64(0xFF), np.uint64(0))
            byte = np.where(nibble >> np.uint64(3), sign, byte)
            out = out | byte << np.uint64(8 * position)
        put(step, out.astype(np.uint32))

    return run


@op("lop3")
def lop3(code: Instruction) -> Run:
    """Any function of three bits, given as a table."""
    put = writer(code.operands[0], "u32")
    a, b, c, table = (reader(operand, "u32") for operand in code.operands[1:5])

    def run(step: Step) -> None:
        words, known = [np.asarray(part(step)) for part in (a, b, c)], int(table(step))
        out = np.uint32(0)
        for row in range(8):
            if known >> row & 1:
                parts = [w if row >> 2 - i & 1 else ~w for i, w in enumerate(words)]
                out = out | (parts[0] & parts[1] & parts[2])
        put(step, out)

    return run


@op("shf")
def funnel_shift(code: Instruction) -> Run:
    """A word out of two that are shifted as one."""
    left, wraps = code.has("l"), code.has("wrap")
    put = writer(code.operands[0], "u32")
    low, high, count = (reader(operand, "u32") for operand in code.operands[1:4])

    def run(step: Step) -> None:
        both = np.asarray(low(step), np.uint64) | np.asarray(high(step), np.uint64) << np.uint64(32)
        by = np.asarray(count(step), np.uint64)
        by = by & np.uint64(31) if wraps else np.minimum(by, np.uint64(32))
        moved = both << by >> np.uint64(32) if left else both >> by
        put(step, moved.astype(np.uint32))

    return run


@op("bfi")
def bfi(code: Instruction) -> Run:
    """Put a field of bits into a word."""
    kind = f"u{code.type[1:]}"
    bits, as_type = 8 * SIZES[kind], NUMPY[kind]
    put = writer(code.operands[0], kind)
    field, word = (reader(operand, kind) for operand in code.operands[1:3])
    start, length = (reader(operand, "u32") for operand in code.operands[3:5])

    def run(step: Step) -> None:
        first = np.asarray(start(step), np.int64) & 0xFF
        size = np.minimum(np.asarray(length(step), np.int64) & 0xFF, bits)
        ones = np.where(
            size >= 64,
            np.uint64(2**64 - 1),
            (np.uint64(1) << size.astype(np.uint64)) - np.uint64(1),
        )
        by = np.minimum(first, 63).astype(np.uint64)
        mask = np.where(first < bits, ones << by, np.uint64(0)).astype(as_type)
        moved = (np.asarray(field(step), np.uint64) << by).astype(as_type)
        put(step, np.asarray(word(step)) & ~mask | moved & mask)

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
