"""Whether a wgmma.fence stands between other uses of a wgmma's registers and the wgmma.

PTX ISA, "wgmma.fence". The order of accesses to registers is a matter of the program's text, so
this looks at all ways that lead to an instruction, taken or not.
"""

from collections.abc import Iterator
from typing import Any

from mbt_fast.testing.ptx.syntax import Address, Instruction, Kernel, Pair, Register, Vector

LEAVES = ("ret", "exit", "trap")


def unfenced(kernel: Kernel, pc: int) -> str | None:
    """Why the registers of the wgmma at an index of the program are not fenced, or ``None``.

    Accumulators of a wgmma of the same shape need no fence of their own.
    """
    code = kernel.code[pc]
    own = {*registers(code.operands[0])}
    if isinstance(code.operands[1], Vector):  # A in registers
        own |= {*registers(code.operands[1])}
    seen: set[int] = set()
    waiting = [*before(kernel, pc)]
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        if place < 0:
            return "a wgmma.fence must come before the first wgmma"
        other = kernel.code[place]
        if other.opcode == "wgmma" and other.has("fence"):
            continue
        touched = _used(other, code) & own
        if touched:
            return (
                f"line {other.line} uses {min(touched).name} and no wgmma.fence comes between: "
                f"{other.text[:60]}"
            )
        waiting += before(kernel, place)
    return None


def before(kernel: Kernel, pc: int) -> Iterator[int]:
    """Indices of the instructions that may run before another; -1 for the start of the program."""
    yield from kernel.jumps_to.get(pc, ())
    if pc == 0:
        yield -1
        return
    last = kernel.code[pc - 1]
    if last.guard is not None or last.opcode not in ("bra", *LEAVES):
        yield pc - 1


def registers(operand: Any) -> Iterator[Register]:
    """Registers in an operand."""
    if isinstance(operand, Register):
        yield operand
    elif isinstance(operand, Vector):
        for part in operand.parts:
            yield from registers(part)
    elif isinstance(operand, Pair):
        yield from registers(operand.first)
        yield from registers(operand.second)
    elif isinstance(operand, Address):
        yield from registers(operand.base)
        for part in operand.coordinates:
            yield from registers(part)


def _used(other: Instruction, code: Instruction) -> set[Register]:
    """What an instruction uses that a fence must separate from ``code``."""
    operands = other.operands
    if other.opcode == "wgmma" and other.has("mma_async"):
        is_same_shape = other.modifiers[3] == code.modifiers[3]
        # accumulators of one shape are in order; A is only read
        operands = () if is_same_shape else operands[:1]
    return {register for operand in operands for register in registers(operand)}
