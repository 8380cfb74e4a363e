"""wgmma: products of a warp group, 64 x N x 32 bytes, that run beside the program.

PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions". Sums are float32 or
int32, dense matrices only.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from mbt_fast.testing.ptx import descriptor, fragments
from mbt_fast.testing.ptx.asynchronous import Asynchronous
from mbt_fast.testing.ptx.elements import ELEMENTS, Element
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.memory import SHARED_BASE
from mbt_fast.testing.ptx.operands import reader
from mbt_fast.testing.ptx.products import (
    Group,
    Product,
    RegisterOperand,
    Registers,
    SharedOperand,
    finish,
    start_sums,
)
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import Immediate, Instruction, Register, Vector
from mbt_fast.testing.ptx.warp_groups import collective, of_groups
from mbt_fast.testing.ptx.wgmma_fence import unfenced

SHAPE = re.compile(r"m64n(\d+)k(\d+)$")
STEP_BYTES = 32  # of the summed dimension, per instruction
SUMS = {"f32": np.float32, "s32": np.int32}
PAIRS = {  # types of A and B by that of the sums
    "f32": [(kind, kind) for kind in ("bf16", "f16", "tf32")]
    + [(a, b) for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")],
    "s32": [(a, b) for a in ("s8", "u8") for b in ("s8", "u8")],
}


@op("wgmma")
def wgmma(code: Instruction) -> Run:
    """Any of the four instructions."""
    forms: dict[str, Callable[[Instruction], Run]] = {
        "fence": lambda code: _together,
        "mma_async": _mma_async,
        "commit_group": lambda code: _commit,
        "wait_group": _wait,
    }
    if code.modifiers[0] not in forms or not code.has("sync", "aligned"):
        raise PtxError(f"{'.'.join(code.modifiers)} is not implemented")
    return forms[code.modifiers[0]](code)


_together = collective(lambda step, state, warps, groups: None)


def _commit_groups(step: Step, state: Asynchronous, warps: Array, groups: list[Group]) -> None:
    for group in groups:
        group.committed.append(group.uncommitted)
        group.uncommitted = []


_commit = collective(_commit_groups)


def _mma_async(code: Instruction) -> Run:
    columns, total, *kinds = _form(code)
    left, right = (ELEMENTS[kind] for kind in kinds)
    accumulators = _registers(code.operands[0])
    if columns % 8 or len(accumulators) != columns // 2:
        raise PtxError(f"{columns} columns need {columns // 2} registers, got {len(accumulators)}")
    scale_d = reader(code.operands[3], "pred")
    signs = [_constant(part, (-1, 1)) for part in code.operands[4:6]]
    read_a, read_b = _readers(code, columns, kinds[0])
    is_negative = math.prod(signs) < 0
    is_fenced = False

    def act(step: Step, state: Asynchronous, warps: Array, groups: list[Group]) -> None:
        nonlocal is_fenced
        is_fenced = is_fenced or _check_fence(step)
        if any(group.overlapping(accumulators) for group in groups):
            step.fail("accumulators overlap with others of a wgmma that is not waited for")
        file = step.blocks.registers["b32"]
        a, b = read_a(step, state, warps), read_b(step, state, warps)
        added = _product(_values(left, a[1]), _values(right, b[1]))
        sums = start_sums(groups, accumulators, file, warps, SUMS[total])
        sums[~of_groups(step, scale_d(step))] = 0
        if is_negative:
            sums -= added.astype(sums.dtype)
        else:
            sums += added.astype(sums.dtype)
        product = Product(code.line, accumulators, (a[0], b[0]))
        for row, group in enumerate(groups):
            group.uncommitted.append((product, row))

    return collective(act)


def _form(code: Instruction) -> tuple[int, str, str, str]:
    """Columns, and the types of the sums, of A and of B."""
    shape, (total, *kinds) = SHAPE.match(code.modifiers[3]), code.modifiers[4:]
    if shape is None or tuple(kinds) not in PAIRS.get(total, ()):
        raise PtxError(f"{'.'.join(code.modifiers[3:])} is not implemented")
    depth = STEP_BYTES // np.dtype(ELEMENTS[kinds[0]].bits).itemsize
    if int(shape[2]) != depth:
        raise PtxError(f"a product of {kinds[0]} must have a depth of {depth}, got {shape[2]}")
    return int(shape[1]), total, kinds[0], kinds[1]


def _values(element: Element, halves: Array) -> Array:
    """Elements of a matrix that was read as 16 x 2 bytes in each row, as float32."""
    bits = np.ascontiguousarray(halves).view(element.bits)
    return element.values(bits).astype(np.float32, copy=False)


def _product(a: Array, b: Array) -> Array:
    """``a b'``; exact for integers, whose sums are below 2^24."""
    return a @ np.swapaxes(b, -1, -2)


def _wait(code: Instruction) -> Run:
    operand = code.operands[0]
    if not isinstance(operand, Immediate):
        raise PtxError(f"the number of groups must be a constant, got {operand}")
    pending = operand.value

    def act(step: Step, state: Asynchronous, warps: Array, groups: list[Group]) -> None:
        done = [group.wait(pending) for group in groups]
        _check_operands(step, done)
        # groups with the same history finish together
        together: dict[tuple[Registers, ...], list[int]] = defaultdict(list)
        for row, group in enumerate(groups):
            busy = {product.accumulators for product, _ in group.in_flight()}
            names = dict.fromkeys(product.accumulators for product, _ in done[row])
            together[tuple(name for name in names if name not in busy)].append(row)
        for free, rows in together.items():
            members = [groups[row] for row in rows]
            written = finish(members, list(free), step.blocks.registers["b32"], warps[rows])
            if written:
                step.fail("an accumulator was written before wgmma.wait_group")

    return collective(act)


def _check_operands(step: Step, done: list[list[tuple[Product, int]]]) -> None:
    """Read the operands of completed products again."""
    rows: dict[Product, list[int]] = defaultdict(list)
    for entries in done:
        for product, row in entries:
            rows[product].append(row)
    for product, members in rows.items():
        for operand in product.operands:
            if not operand.is_unchanged(np.array(members)):
                kind = "shared memory" if isinstance(operand, SharedOperand) else "registers"
                step.fail(
                    f"{kind} that the wgmma of line {product.line} reads changed before "
                    "wgmma.wait_group"
                )


def _check_fence(step: Step) -> bool:
    problem = unfenced(step.blocks.launch.kernel, step.pc)
    if problem:
        step.fail(problem)
    return True


def _registers(operand: Any) -> Registers:
    """Indices of the registers of a vector."""
    parts = operand.parts if isinstance(operand, Vector) else (operand,)
    found = [part for part in parts if isinstance(part, Register)]
    if len(found) != len(parts) or len(set(found)) != len(parts):
        raise PtxError("the parts of a fragment must be registers, each once")
    return tuple(register.number for register in found)


def _constant(operand: Any, allowed: tuple[int, int]) -> int:
    if not isinstance(operand, Immediate) or operand.value not in allowed:
        raise PtxError(f"an operand must be {allowed[0]} or {allowed[1]}, got {operand}")
    return operand.value


Reading = Callable[[Step, Asynchronous, Array], tuple[SharedOperand | RegisterOperand, Array]]


def _readers(code: Instruction, columns: int, kind: str) -> tuple[Reading, Reading]:
    """Of A and B. Of the matrices in shared memory only those of two bytes may be transposed."""
    a, b = code.operands[1:3]
    from_registers = isinstance(a, Vector)
    majors = [_constant(part, (0, 1)) for part in code.operands[6:]]
    if len(majors) != (2 - from_registers) * (kind in ("bf16", "f16")):
        raise PtxError(f"{len(majors)} operands are one too few or too many for imm-trans")
    major_a, major_b = (majors[0], majors[-1]) if majors else (0, 0)
    read_b = _shared_reader(b, columns, major_b)
    if isinstance(a, Vector):
        return _fragment_reader(a), read_b
    return _shared_reader(a, fragments.ROWS, major_a), read_b


def _fragment_reader(operand: Vector) -> Reading:
    indices = _registers(operand)
    if len(indices) != 4:
        raise PtxError(f"A must have four registers, got {len(indices)}")

    def read(step: Step, state: Asynchronous, warps: Array) -> tuple[RegisterOperand, Array]:
        found = RegisterOperand(step.blocks.registers["b32"], indices, warps)
        return found, fragments.multiplicand(found.values)

    return read


def _shared_reader(operand: Any, rows: int, major: int) -> Reading:
    bits = reader(operand, "u64")

    def read(step: Step, state: Asynchronous, warps: Array) -> tuple[SharedOperand, Array]:
        values = of_groups(step, bits(step))
        try:
            unique = [descriptor.chunk_addresses(int(v), rows, major) for v in values]
        except ValueError as error:
            step.fail(str(error))
        shared, offsets = step.blocks.shared, np.stack(unique) - SHARED_BASE
        if offsets.min() < 0 or offsets.max() + descriptor.CHUNK_BYTES > shared.size:
            step.fail(f"a descriptor leads out of the {shared.size} bytes of the block")
        base = shared.base[step.blocks.block_of_warp[warps[:, 0]]]
        places = offsets + base[:, None, None]
        threads = warps[:, :, None] * 32 + np.arange(32)
        state.check_seen(step, places, threads.reshape(len(warps), -1))
        found = SharedOperand(shared.flat, places)
        return found, descriptor.matrix(found.values, major)

    return read
