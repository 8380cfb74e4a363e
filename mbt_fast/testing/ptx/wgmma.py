"""wgmma: products of a warp group, 64 x N x 16, that run beside the program.

PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions". Only what our
compilers write: bf16 and f16 elements, float32 sums.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from mbt_fast.testing.ptx import descriptor, fragments
from mbt_fast.testing.ptx.asynchronous import Asynchronous, asynchronous
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
from mbt_fast.testing.ptx.wgmma_fence import unfenced

SHAPE = re.compile(r"m64n(\d+)k16$")
WARPS = fragments.WARPS


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


def assemble(step: Step) -> Step | None:
    """All warps of the warp groups that are complete with the warps of ``step``.

    The last warp of a group to come brings along those that wait here; the others wait.

    Returns:
        A step of whole groups in order, or ``None`` if none is complete.

    Raises:
        PtxError: A thread of a warp is elsewhere, or the block has no whole warp groups.
    """
    step.whole_warps()
    blocks = step.blocks
    if blocks.warps_each % WARPS:
        step.fail(f"blocks must have whole groups of {WARPS} warps, got {blocks.warps_each} warps")
    if isinstance(step.at, slice) and step.at.start % WARPS == step.n % WARPS == 0:
        return step
    comes = np.zeros((len(blocks.numbers) // WARPS, WARPS), bool)
    comes.ravel()[step.at] = True
    touched = np.flatnonzero(comes.any(axis=1))
    numbers = touched[:, None] * WARPS + np.arange(WARPS)
    waits = (blocks.parked[numbers] & (blocks.pc[numbers] == step.pc)).all(axis=-1)
    complete = (waits | comes[touched]).all(axis=1)
    if not complete.any():
        return None
    members = numbers[complete].ravel()
    blocks.unpark(members)
    whole = Step(blocks, members, len(members), None)
    whole.pc = step.pc
    return whole


Act = Callable[[Step, Asynchronous, Array, list[Group]], None]


def _collective(act: Act) -> Run:
    """An instruction of whole warp groups: ``act(step, state, warps, groups)``."""

    def run(step: Step) -> bool | None:
        whole = assemble(step)
        if whole is not None:
            warps = whole.warps.reshape(-1, WARPS)
            state = asynchronous(whole.blocks)
            act(whole, state, warps, [state.groups[int(first) // WARPS] for first in warps[:, 0]])
        if whole is step:
            return None
        went = np.zeros(step.n, bool)
        if whole is not None:
            whole.advance(whole.lanes)
            together = np.zeros(len(step.blocks.numbers), bool)
            together[whole.at] = True
            went = together[step.at]
        waits = np.repeat(~went[:, None], 32, axis=1)
        if waits.any():
            step.park(waits, lambda: ~step.lanes, "the other warps of the warp group")
        return True

    return run


_together = _collective(lambda step, state, warps, groups: None)


def _commit_groups(step: Step, state: Asynchronous, warps: Array, groups: list[Group]) -> None:
    for group in groups:
        group.committed.append(group.uncommitted)
        group.uncommitted = []


_commit = _collective(_commit_groups)


def _mma_async(code: Instruction) -> Run:
    shape = SHAPE.match(code.modifiers[3])
    kinds = code.modifiers[4:]
    if shape is None or kinds not in (("f32", "bf16", "bf16"), ("f32", "f16", "f16")):
        raise PtxError(f"{'.'.join(code.modifiers[3:])} is not implemented")
    columns = int(shape[1])
    accumulators = _registers(code.operands[0])
    if columns % 8 or len(accumulators) != columns // 2:
        raise PtxError(f"{columns} columns need {columns // 2} registers, got {len(accumulators)}")
    scale_d = reader(code.operands[3], "pred")
    signs = [_constant(part, (-1, 1)) for part in code.operands[4:6]]
    transposed = [_constant(part, (0, 1)) for part in code.operands[6:]]
    read_a = _a_reader(code, transposed)
    read_b = _shared_reader(code.operands[2], columns, transposed[-1])
    to_float = TO_FLOAT[kinds[1]]

    is_fenced = False

    def act(step: Step, state: Asynchronous, warps: Array, groups: list[Group]) -> None:
        nonlocal is_fenced
        is_fenced = is_fenced or _check_fence(step)
        if any(group.overlapping(accumulators) for group in groups):
            step.fail("accumulators overlap with others of a wgmma that is not waited for")
        file = step.blocks.registers["b32"]
        a, b = read_a(step, state, warps), read_b(step, state, warps)
        added = to_float(a[1]) @ np.swapaxes(to_float(b[1]), -1, -2)
        if signs[0] != signs[1]:
            np.negative(added, out=added)
        sums = start_sums(groups, accumulators, file, warps)
        keeps = _of_groups(step, scale_d(step))
        sums *= keeps[:, None, None]
        if not keeps.all():
            sums[~keeps] = 0  # NaN times zero is NaN
        sums += added
        product = Product(code.line, accumulators, (a[0], b[0]))
        for row, group in enumerate(groups):
            group.uncommitted.append((product, row))

    return _collective(act)


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

    return _collective(act)


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


def _a_reader(code: Instruction, transposed: list[int]) -> Reading:
    operand = code.operands[1]
    if not isinstance(operand, Vector):
        if len(transposed) != 2:
            raise PtxError(f"imm-trans-a and imm-trans-b must be given, got {transposed}")
        return _shared_reader(operand, fragments.ROWS, transposed[0])
    indices = _registers(operand)
    if len(indices) != 4 or len(transposed) != 1:
        raise PtxError("A in registers must have four, and no imm-trans-a")

    def read(step: Step, state: Asynchronous, warps: Array) -> tuple[RegisterOperand, Array]:
        found = RegisterOperand(step.blocks.registers["b32"], indices, warps)
        return found, fragments.multiplicand(found.values)

    return read


def _shared_reader(operand: Any, rows: int, major: int) -> Reading:
    bits = reader(operand, "u64")

    def read(step: Step, state: Asynchronous, warps: Array) -> tuple[SharedOperand, Array]:
        values = _of_groups(step, bits(step))
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


def _of_groups(step: Step, value: Any) -> Array:
    """A value that all threads of a group share, ``[groups]``.

    Raises:
        PtxError: They do not.
    """
    rows = np.reshape(step.full(value), (-1, WARPS * 32))
    if (rows != rows[:, :1]).any():
        step.fail("an operand must be the same in all threads of a warp group")
    return np.ascontiguousarray(rows[:, 0])


def _bf16(values: Array) -> Array:
    return (values.astype(np.uint32) << 16).view(np.float32)


def _f16(values: Array) -> Array:
    return np.ascontiguousarray(values).view(np.float16).astype(np.float32)


TO_FLOAT = {"bf16": _bf16, "f16": _f16}
