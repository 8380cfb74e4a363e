"""Moves between registers, and loads and stores."""

from typing import Any

import numpy as np

from mbt_fast.testing.ptx import shared_access
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.memory import PROCESS, gather, global_places, scatter, vector_of
from mbt_fast.testing.ptx.operands import NUMPY, UNSIGNED, Read, reader, readers, writer, writers
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Step
from mbt_fast.testing.ptx.syntax import SIZES, Address, Instruction, Register, Symbol, Vector

SPACES = ("global", "shared", "shared::cta", "param", "param::entry", "const")


@op("mov")
def mov(code: Instruction) -> Run:
    """Copy, pack or unpack."""
    target, source = code.operands
    kind = code.type
    if isinstance(target, Vector):
        return _unpack(target, source, kind)
    if isinstance(source, Vector):
        return _pack(target, source, kind)
    put, take = writer(target, kind), reader(source, kind)
    return lambda step: put(step, take(step))


def _pack(target: Any, source: Vector, kind: str) -> Run:
    """Parts into one register, the first lowest."""
    width = SIZES[kind] // len(source.parts)
    part, whole = UNSIGNED[width], NUMPY[UNSIGNED[SIZES[kind]]]
    put, take = writer(target, UNSIGNED[SIZES[kind]]), readers(source, part)

    def run(step: Step) -> None:
        values = vector_of([read(step) for read in take], step, NUMPY[part])
        put(step, values.view(whole)[..., 0])

    return run


def _unpack(target: Vector, source: Any, kind: str) -> Run:
    width = SIZES[kind] // len(target.parts)
    part = UNSIGNED[width]
    take, put = reader(source, UNSIGNED[SIZES[kind]]), writers(target, part)

    def run(step: Step) -> None:
        whole = np.ascontiguousarray(step.full(take(step)))[..., None].view(NUMPY[part])
        for position, write in enumerate(put):
            write(step, whole[..., position])

    return run


def address_reader(operand: Any, space: str) -> Read:
    """Addresses as int64 ``[n, 32]`` or a scalar."""
    if not isinstance(operand, Address):
        raise PtxError(f"an address must be in brackets, got {operand}")
    wide = isinstance(operand.base, Register) and operand.base.kind == "b64"
    take = reader(operand.base, "u64" if wide or isinstance(operand.base, Symbol) else "u32")
    offset = operand.offset
    return lambda step: np.asarray(take(step)).astype(np.int64) + offset


def _space(code: Instruction) -> str:
    for modifier in code.modifiers:
        if modifier in SPACES:
            return modifier.partition("::")[0]
    raise PtxError(
        f"{code.opcode} must name its state space; generic addresses are not implemented"
    )


def _count(code: Instruction) -> int:
    return next((int(m[1:]) for m in code.modifiers if m in ("v2", "v4", "v8")), 1)


@op("ld")
def ld(code: Instruction) -> Run:
    """Load from global, shared or constant memory, or a parameter."""
    space, count, kind = _space(code), _count(code), code.type
    if space == "param" and isinstance(getattr(code.operands[1], "base", None), Symbol):
        return _load_parameter(code, kind, count)
    put = writers(code.operands[0], kind)
    take = address_reader(code.operands[1], space)
    as_type, size = NUMPY[kind], SIZES[kind] * count

    def finish(step: Step, values: Any) -> None:
        for position, write in enumerate(put):
            write(step, values[..., position])

    if space == "shared":

        def from_shared(step: Step) -> None:
            place = step.blocks.shared.places(step, step.full(take(step)), size)
            finish(step, shared_access.load(step, place, as_type, count))

        return from_shared

    def from_global(step: Step) -> None:
        address = step.full(take(step))
        step.blocks.launch.memory.check(step, address, size)
        if step.mask is not None:
            address = np.where(step.mask, address, address[step.mask][0])
        finish(step, gather(PROCESS, global_places(address), as_type, count))

    return from_global


def _load_parameter(code: Instruction, kind: str, count: int) -> Run:
    put = writers(code.operands[0], kind)
    address = code.operands[1]
    if not isinstance(address, Address) or not isinstance(address.base, Symbol):
        raise PtxError("a parameter must be named")
    name, offset = address.base.name, address.offset
    size = SIZES[kind]

    def run(step: Step) -> None:
        launch = step.blocks.launch
        start = launch.kernel.parameters[name].offset + offset
        part = launch.parameters[start : start + size * count]
        if len(part) != size * count:
            step.fail(f"{name} has no {size * count} bytes at {offset}")
        values = part.view(NUMPY[kind])
        for write, value in zip(put, values, strict=True):
            write(step, value)

    return run


@op("st")
def st(code: Instruction) -> Run:
    """Store to global or shared memory."""
    space, count, kind = _space(code), _count(code), code.type
    take = address_reader(code.operands[0], space)
    parts = readers(code.operands[1], kind)
    as_type, size = NUMPY[kind], SIZES[kind] * count

    def run(step: Step) -> None:
        address = step.full(take(step))
        values = vector_of([part(step) for part in parts], step, as_type)
        if space == "shared":
            place = step.blocks.shared.places(step, address, size)
        else:
            step.blocks.launch.memory.check(step, address, size)
            place = global_places(address)
        if space == "shared":
            shared_access.store(step, place, values, code.line)
        if step.mask is not None:
            place, values = place[step.mask], values[step.mask]
        if space == "shared":
            if step.blocks.proxies is not None:
                threads = step.threads if step.mask is None else step.threads[step.mask]
                step.blocks.proxies.store(place, size, threads, code.line)
        else:
            scatter(PROCESS, place, values)

    return run
