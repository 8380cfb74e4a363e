"""Bulk copies of boxes of tensors, as a tensor map describes them.

PTX ISA, "Tensor copy": ``cp.async.bulk.tensor`` either way, and ``cp.reduce.async.bulk.tensor``.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mbt_fast.testing.ptx import tensor_map
from mbt_fast.testing.ptx.atomics import FUNCTIONS, of_type
from mbt_fast.testing.ptx.bulk_copies import BulkLoad
from mbt_fast.testing.ptx.bulk_issue import address_of, chunks, defer, each, issue
from mbt_fast.testing.ptx.descriptor import CHUNK_BYTES
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.memory import PROCESS, global_places
from mbt_fast.testing.ptx.operands import NUMPY, reader
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import Address, Instruction, Operand

BOX_ALIGNMENT = 128
MAP_ALIGNMENT = 64
WHOLE = PROCESS[: len(PROCESS) // 8 * 8]  # so that it can be seen as elements of any size
TO_SHARED = {
    ("shared::cluster", "global", "mbarrier::complete_tx::bytes"),
    ("shared::cta", "global", "mbarrier::complete_tx::bytes"),
}
TO_GLOBAL = ("global", "shared::cta", "bulk_group")
REDUCTIONS = {("global", "shared::cta", name, "bulk_group"): name for name in FUNCTIONS}
# Types by CUtensorMapDataType.
KINDS = (
    "u8",
    "u16",
    "u32",
    "s32",
    "u64",
    "s64",
    "f16",
    "f32",
    "f64",
    "bf16",
    "f32",
)


class Box(NamedTuple):
    """The elements that one copy takes.

    Args:
        kind: Their type.
        where: Place of each in ``memory``, in the order of shared memory.
        inside: Which of them lie in the tensor.
        places: Of their chunks in the shared memory of all blocks.
    """

    kind: str
    where: Array
    inside: Array
    places: Array

    @property
    def memory(self) -> Array:
        """All memory, as elements."""
        return WHOLE.view(NUMPY[self.kind])

    def read(self) -> Array:
        """The source of a load, uint8 ``[chunks, 16]``: zeros outside."""
        values = np.zeros(len(self.where), NUMPY[self.kind])
        values[self.inside] = self.memory[self.where[self.inside]]
        return values.view(np.uint8).reshape(-1, CHUNK_BYTES)

    def change(self, source: Array, function: Callable[..., Array]) -> None:
        """Store ``function(old, new)`` of the elements inside."""
        where, memory = self.where[self.inside], self.memory
        new = source.reshape(-1).view(NUMPY[self.kind])[self.inside]
        memory[where] = function(memory[where], new)


@op("cp.async.bulk.tensor")
def copy(code: Instruction) -> Run:
    """A box from global to shared memory, or back."""
    rank, form = _rank(code), code.modifiers[4:]
    if form == TO_GLOBAL:
        return _store(code, rank, lambda kind: lambda old, new: new)
    if form not in TO_SHARED:
        raise PtxError(f"cp.async.bulk.tensor.{'.'.join(form)} is not implemented")
    target, source, barrier = code.operands
    find, signal = _box_reader(source, target, rank), address_of(barrier, "shared")

    def act(step: Step, row: int, lane: int, thread: int) -> None:
        box = find(step, row, lane)
        load = BulkLoad(code.line, box.places, box.read)
        issue(step, row, thread, load, signal(step, row, lane))

    return each(act)


@op("cp.reduce.async.bulk.tensor")
def reduce(code: Instruction) -> Run:
    """Combine a box of a tensor with one in shared memory, element by element."""
    rank, form = _rank(code), code.modifiers[5:]
    if form not in REDUCTIONS:
        raise PtxError(f"cp.reduce.async.bulk.tensor.{'.'.join(form)} is not implemented")
    name = REDUCTIONS[form]
    return _store(code, rank, lambda kind: of_type(FUNCTIONS[name], kind, flush=name == "add"))


def _store(code: Instruction, rank: int, function_of: Callable[[str], Callable[..., Array]]) -> Run:
    target, source = code.operands
    find = _box_reader(target, source, rank)

    def act(step: Step, row: int, lane: int, thread: int) -> None:
        box = find(step, row, lane)
        function = function_of(box.kind)
        defer(step, thread, code.line, box.places, lambda values: box.change(values, function))

    return each(act)


def _rank(code: Instruction) -> int:
    return int(code.modifiers[code.modifiers.index("tensor") + 1].removesuffix("d"))


def _box_reader(described: Operand, shared: Operand, rank: int) -> Callable[[Step, int, int], Box]:
    """A function that finds the box of one thread, given by row and lane."""
    if not isinstance(described, Address) or len(described.coordinates) != rank:
        raise PtxError(f"a tensor of {rank} dimensions needs as many coordinates")
    place, map_at = address_of(shared, "shared"), address_of(described, "global")
    corner = [reader(part, "s32") for part in described.coordinates]

    def find(step: Step, row: int, lane: int) -> Box:
        tensor = tensor_at(step, map_at(step, row, lane))
        if len(tensor.sizes) != rank:
            raise ValueError(f"the tensor map must have {rank} dimensions, got {len(tensor.sizes)}")
        first = [int(step.full(part(step))[row, lane]) for part in corner]
        addresses, inside = tensor_map.box_elements(tensor, first)
        if not step.blocks.launch.memory.holds(addresses[inside], tensor.element_bytes).all():
            raise ValueError("the tensor of the map reaches out of all tensors of the launch")
        start = place(step, row, lane)
        if start % BOX_ALIGNMENT:
            raise ValueError(f"a box must begin at a multiple of {BOX_ALIGNMENT}, got {start}")
        places = chunks(step, row, start, tensor.box_bytes, tensor_map.box_chunks(tensor, start))
        where = global_places(addresses) // tensor.element_bytes
        return Box(KINDS[tensor.data_type], where, inside, places)

    return find


def tensor_at(step: Step, address: int) -> tensor_map.TensorMap:
    """The tensor map at an address.

    Raises:
        ValueError: There is none.
    """
    if address % MAP_ALIGNMENT:
        raise ValueError(f"a tensor map must be at a multiple of {MAP_ALIGNMENT}, got {address}")
    if not step.blocks.launch.memory.holds(np.array(address), tensor_map.BYTES).all():
        raise ValueError(f"the tensor map at {address:#x} is outside of all tensors and parameters")
    start = int(global_places(np.array(address)))
    return _decoded(PROCESS[start : start + tensor_map.BYTES].tobytes())


_decoded = lru_cache(maxsize=256)(tensor_map.decode)
