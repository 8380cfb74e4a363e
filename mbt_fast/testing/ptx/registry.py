"""Which function makes an instruction runnable.

A function registered for an opcode is called once for each instruction of a program. It returns
what is called each time that a group of warps comes to the instruction::

    @op("xyz")
    def xyz(code: Instruction) -> Run:
        value, put = reader(code.operands[1], "u32"), writer(code.operands[0], "u32")

        def run(step: Step) -> bool | None:
            put(step, value(step) + 1)

        return run

What ``run`` returns is true if it has moved the threads on by itself (a branch, a wait).
"""

import importlib
from collections.abc import Callable, Iterable

import numpy as np

from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.step import Step
from mbt_fast.testing.ptx.syntax import Instruction

Run = Callable[[Step], "bool | None"]
Make = Callable[[Instruction], Run]

OPS: dict[str, Make] = {}
FAMILIES = (
    *("arithmetic", "bits", "convert", "control", "move", "warp", "tensor", "copy"),
    *("atomics", "carries", "convert_fp8", "local"),
    *("wgmma", "mbarrier", "bulk", "tensor_copies", "tensor_map_edit", "fences"),  # of sm_90
)


def op(*opcodes: str) -> Callable[[Make], Make]:
    """Register a function for opcodes, with as many modifiers as tell it from others."""

    def register(make: Make) -> Make:
        for opcode in opcodes:
            if opcode in OPS:
                raise ValueError(f"{opcode} is registered twice")
            OPS[opcode] = make
        return make

    return register


def runnable(code: Iterable[Instruction], labels: dict[str, int]) -> list[Run]:
    """Make instructions runnable.

    Raises:
        PtxError: An opcode, a modifier or an operand is not implemented; names the line.
    """
    for family in FAMILIES:
        importlib.import_module(f"mbt_fast.testing.ptx.{family}")
    return [_guarded(instruction, _make(instruction, labels)) for instruction in code]


def _make(instruction: Instruction, labels: dict[str, int]) -> Run:
    from mbt_fast.testing.ptx.control import branch

    try:
        if instruction.opcode == "bra":
            return branch(instruction, labels)
        return _registered(instruction)(instruction)
    except (KeyError, IndexError, PtxError) as error:
        raise PtxError(f"cannot run: {error}", instruction.line, instruction.text) from error


def _registered(instruction: Instruction) -> Make:
    """The function of the longest registered name that the opcode starts with."""
    parts = [instruction.opcode, *instruction.modifiers]
    for length in range(len(parts), 0, -1):
        make = OPS.get(".".join(parts[:length]))
        if make is not None:
            return make
    raise PtxError(f"the instruction {instruction.opcode} is not implemented")


def _guarded(instruction: Instruction, run: Run) -> Run:
    """Only in threads whose guard holds; the others go on."""
    from mbt_fast.testing.ptx.operands import reader

    if instruction.guard is None:
        return run
    guard = reader(instruction.guard, "pred")

    def guarded(step: Step) -> bool | None:
        holds = np.broadcast_to(guard(step), step.shape)
        mask = holds if step.mask is None else holds & step.mask
        if not mask.any():
            return None
        inner = step.narrowed(mask)
        moved = run(inner)
        if moved:
            step.advance(step.lanes & ~mask)
        return moved

    return guarded
