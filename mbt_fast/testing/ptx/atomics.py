"""Atomic operations on global and shared memory: ``atom`` and ``red``.

Threads take their turns in the order of their numbers. The ISA promises no order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.floats import flushed, from_bf16, halves_of, packed_halves, to_bf16
from mbt_fast.testing.ptx.memory import PROCESS, gather, global_places, scatter, vector_of
from mbt_fast.testing.ptx.move import address_reader
from mbt_fast.testing.ptx.operands import NUMPY, readers, writers
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import SIZES, Instruction

Function = Callable[..., Array]  # what is stored, of what was there and the operands
FUNCTIONS: dict[str, Function] = {
    "add": np.add,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "min": np.fmin,
    "max": np.fmax,
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: np.where(old == expected, new, old),
    "inc": lambda old, last: np.where(old >= last, 0, old + 1).astype(old.dtype),
    "dec": lambda old, last: np.where((old == 0) | (old > last), last, old - 1),
}
SPACES = ("global", "shared", "shared::cta")


@op("atom", "red")
def atomic(code: Instruction) -> Run:
    """Read, change and write at once; ``atom`` also returns what was there."""
    space = next((m for m in code.modifiers if m in SPACES), None)
    name = next((m for m in code.modifiers if m in FUNCTIONS), None)
    if space is None or name is None:
        raise PtxError(f"{code.opcode}.{'.'.join(code.modifiers)} is not implemented")
    kind, count = code.type, next((int(m[1:]) for m in code.modifiers if m in ("v2", "v4")), 1)
    operands = code.operands[code.opcode == "atom" :]
    put = writers(code.operands[0], kind) if code.opcode == "atom" else []
    take = address_reader(operands[0], space)
    parts = [readers(operand, kind) for operand in operands[1:]]
    size, as_type = SIZES[kind], NUMPY[kind]
    change = of_type(FUNCTIONS[name], kind, flush=space == "global" and name == "add")

    def run(step: Step) -> None:
        address = step.full(take(step))
        place, flat = _places(step, address, size * count, space)
        given = [vector_of([part(step) for part in each], step, as_type) for each in parts]
        old = np.zeros((*step.shape, count), as_type)
        for position in range(count):
            values = [each[..., position][step.lanes] for each in given]
            where = place[step.lanes] + position * size
            old[step.lanes, position] = _take_turns(flat, where, change, values, as_type)
        for position, write in enumerate(put):
            write(step, old[..., position])
        if space != "global" and step.blocks.proxies is not None:
            threads = step.threads[step.lanes]
            step.blocks.proxies.store(place[step.lanes], size * count, threads, code.line)

    return run


def _places(step: Step, address: Array, size: int, space: str) -> tuple[Array, Array]:
    """Offsets of addresses, and the memory that they are offsets in."""
    if space == "global":
        step.blocks.launch.memory.check(step, address, size)
        return global_places(address), PROCESS
    return step.blocks.shared.places(step, address, size), step.blocks.shared.flat


def _take_turns(
    flat: Array, where: Array, change: Function, values: list[Array], kind: Any
) -> Array:
    """Change the elements at some places one after the other; returns what each thread saw."""
    if len(np.unique(where)) == len(where):
        old = gather(flat, where, kind, 1)[:, 0]
        scatter(flat, where, change(old, *values).astype(kind)[:, None])
        return old
    turns = [
        _take_turns(flat, where[i : i + 1], change, [v[i : i + 1] for v in values], kind)
        for i in range(len(where))
    ]
    return np.concatenate(turns)


def of_type(function: Function, kind: str, *, flush: bool) -> Function:
    """The function on the bits that memory holds; sums of float32 in global memory are flushed."""
    if kind == "bf16":
        return lambda *bits: to_bf16(function(*map(from_bf16, bits)))
    if kind == "f16x2":
        return lambda *words: packed_halves(
            function(*(halves_of(word).view(np.float16) for word in words)).view(np.uint16)
        )
    if kind == "bf16x2":
        return lambda *words: packed_halves(
            to_bf16(function(*(from_bf16(halves_of(word)) for word in words)))
        )
    if kind == "f32" and flush:
        return lambda *values: flushed(function(*map(flushed, values)))
    if kind[0] in "usb" and function in (np.fmin, np.fmax):
        return np.minimum if function is np.fmin else np.maximum
    return function
