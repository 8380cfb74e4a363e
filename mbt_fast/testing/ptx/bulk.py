"""Bulk copies: cp.async.bulk, its tensor form, and sums by cp.reduce.async.bulk.

PTX ISA, "Data Movement and Conversion Instructions: Bulk copy", "Tensor copy". Each active thread
issues a copy of its own. Clusters of one block, so shared::cluster is the block's own memory.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from mbt_fast.testing.ptx import tensor_map
from mbt_fast.testing.ptx.asynchronous import asynchronous
from mbt_fast.testing.ptx.bulk_copies import BulkLoad, BulkStore, chunks_of
from mbt_fast.testing.ptx.descriptor import CHUNK_BYTES
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.mbarrier import BYTES as MBARRIER_BYTES
from mbt_fast.testing.ptx.mbarrier import found
from mbt_fast.testing.ptx.memory import PROCESS, SHARED_BASE, global_places
from mbt_fast.testing.ptx.move import address_reader
from mbt_fast.testing.ptx.operands import reader
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import Address, Immediate, Instruction

BOX_ALIGNMENT = 128
MAP_ALIGNMENT = 64
TO_SHARED = ("shared::cluster", "global", "mbarrier::complete_tx::bytes")
TO_SHARED_CTA = ("shared::cta", "global", "mbarrier::complete_tx::bytes")
TO_GLOBAL = ("global", "shared::cta", "bulk_group")


@op("cp.async.bulk", "cp.reduce.async.bulk")
def bulk(code: Instruction) -> Run:
    """Any instruction of the family."""
    words = code.modifiers[code.modifiers.index("bulk") + 1 :]
    if words == ("commit_group",):
        return _each(lambda step, row, lane, thread: _commit(step, thread))
    if words[:1] == ("wait_group",):
        return _wait(code, only_reads=words[1:] == ("read",))
    if words[:1] == ("tensor",):
        return _tensor(code, words[1:])
    if code.modifiers[0] == "reduce":
        if words != (*TO_GLOBAL, "add", "f32"):
            raise PtxError(f"cp.reduce.async.bulk.{'.'.join(words)} is not implemented")
        return _store(code, _add)
    if words in (TO_SHARED, TO_SHARED_CTA):
        return _load(code)
    if words == TO_GLOBAL:
        return _store(code, _copy)
    raise PtxError(f"cp.async.bulk.{'.'.join(words)} is not implemented")


Each = Callable[[Step, int, int, int], "str | None"]


def _each(act: Each) -> Run:
    """``act(step, row, lane, thread)`` in each active thread; what it returns is an error."""

    def run(step: Step) -> None:
        for row, lane in np.argwhere(step.lanes).tolist():
            thread = int(step.warps[row]) * 32 + lane
            try:
                problem = act(step, row, lane, thread)
            except ValueError as error:
                problem = str(error)
            if problem:
                lanes = np.zeros(step.shape, bool)
                lanes[row, lane] = True
                step.fail(problem, lanes)

    return run


def _commit(step: Step, thread: int) -> None:
    asynchronous(step.blocks).bulk[thread].commit()


def _wait(code: Instruction, *, only_reads: bool) -> Run:
    operand = code.operands[0]
    if not isinstance(operand, Immediate):
        raise PtxError(f"the number of groups must be a constant, got {operand}")
    pending = operand.value

    def act(step: Step, row: int, lane: int, thread: int) -> str | None:
        groups = asynchronous(step.blocks).bulk[thread]
        return groups.wait(step.blocks, pending, only_reads=only_reads)

    return _each(act)


def _load(code: Instruction) -> Run:
    """Contiguous bytes from global to shared memory."""
    target, source, count, barrier = code.operands
    to, size = _address(target, "shared"), reader(count, "u32")
    from_, signal = _address(source, "global"), _address(barrier, "shared")

    def act(step: Step, row: int, lane: int, thread: int) -> None:
        count = int(step.full(size(step))[row, lane])
        start = _global(step, from_(step, row, lane), count)
        places = _chunks(step, row, to(step, row, lane), count)
        load = BulkLoad(code.line, places, lambda: start.reshape(-1, CHUNK_BYTES))
        _issue(step, row, thread, load, signal(step, row, lane))

    return _each(act)


def _store(code: Instruction, write: Callable[[Array, Array], None]) -> Run:
    """Contiguous bytes from shared to global memory; ``write(target, source)``, uint8 both."""
    target, source, count = code.operands
    to, size, from_ = _address(target, "global"), reader(count, "u32"), _address(source, "shared")

    def act(step: Step, row: int, lane: int, thread: int) -> None:
        count = int(step.full(size(step))[row, lane])
        start = _global(step, to(step, row, lane), count)
        places = _chunks(step, row, from_(step, row, lane), count)
        _defer(step, thread, code.line, places, lambda values: write(start, values.reshape(-1)))

    return _each(act)


def _tensor(code: Instruction, words: tuple[str, ...]) -> Run:
    """A box of a tensor, either way."""
    rank, form = int(words[0].removesuffix("d")), words[1:]
    to_shared = form in (TO_SHARED, TO_SHARED_CTA)
    if not to_shared and form != TO_GLOBAL:
        raise PtxError(f"cp.async.bulk.tensor.{'.'.join(words)} is not implemented")
    shared, described = code.operands[0], code.operands[1]
    if not to_shared:
        shared, described = described, shared
    if not isinstance(described, Address) or len(described.coordinates) != rank:
        raise PtxError(f"a tensor of {rank} dimensions needs as many coordinates")
    place, map_at = _address(shared, "shared"), _address(described, "global")
    corner = [reader(part, "s32") for part in described.coordinates]
    signal = _address(code.operands[2], "shared") if to_shared else None

    def act(step: Step, row: int, lane: int, thread: int) -> None:
        box = tensor_at(step, map_at(step, row, lane))
        if len(box.sizes) != rank:
            raise ValueError(f"the tensor map must have {rank} dimensions, got {len(box.sizes)}")
        first = [int(step.full(part(step))[row, lane]) for part in corner]
        addresses, inside = tensor_map.box_elements(box, first)
        if not step.blocks.launch.memory.holds(addresses[inside], box.element_bytes).all():
            raise ValueError("the tensor of the map reaches out of all tensors of the launch")
        start = place(step, row, lane)
        if start % BOX_ALIGNMENT:
            raise ValueError(f"a box must begin at a multiple of {BOX_ALIGNMENT}, got {start}")
        places = _chunks(step, row, start, box.box_bytes, tensor_map.box_chunks(box, start))
        element = f"u{box.element_bytes}"
        of_tensor = PROCESS[: len(PROCESS) // 8 * 8].view(element)
        index = global_places(addresses) // box.element_bytes
        if signal is not None:

            def read() -> Array:
                values = np.zeros(len(index), element)
                values[inside] = of_tensor[index[inside]]
                return values.view(np.uint8).reshape(-1, CHUNK_BYTES)

            _issue(step, row, thread, BulkLoad(code.line, places, read), signal(step, row, lane))
        else:

            def write(values: Array) -> None:
                of_tensor[index[inside]] = values.reshape(-1).view(element)[inside]

            _defer(step, thread, code.line, places, write)

    return _each(act)


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


def _issue(step: Step, row: int, thread: int, load: BulkLoad, barrier: int) -> None:
    state = asynchronous(step.blocks)
    place = barrier_place(step, row, barrier)
    found(state, step, place)
    state.check_seen(step, load.places[None], np.array([[thread]]))
    load.start(step.blocks)
    state.loads[place].append(load)


def _defer(
    step: Step, thread: int, line: int, places: Array, write: Callable[[Array], None]
) -> None:
    state = asynchronous(step.blocks)
    state.check_seen(step, places[None], np.array([[thread]]))
    source = chunks_of(step.blocks)[places // CHUNK_BYTES]
    state.bulk[thread].uncommitted.append(BulkStore(line, places, source, write))


def barrier_place(step: Step, row: int, address: int) -> int:
    """Place of an mbarrier's address in the shared memory of all blocks."""
    if address % MBARRIER_BYTES:
        raise ValueError(f"an mbarrier must be at a multiple of {MBARRIER_BYTES}, got {address}")
    return int(_place(step, row, address, MBARRIER_BYTES))


def _address(operand: Any, space: str) -> Callable[[Step, int, int], int]:
    take = address_reader(operand, space)
    return lambda step, row, lane: int(step.full(take(step))[row, lane])


def _global(step: Step, address: int, size: int) -> Array:
    """Bytes of global memory, uint8, to read and to write."""
    _check_multiple("a bulk copy must begin in global memory at", address)
    _check_multiple("a bulk copy must have", size)
    if not step.blocks.launch.memory.holds(np.array(address), size).all():
        raise ValueError(f"{size} bytes at {address:#x} are outside of all tensors")
    start = int(global_places(np.array(address)))
    return PROCESS[start : start + size]


def _chunks(step: Step, row: int, address: int, size: int, addresses: Array | None = None) -> Array:
    """Places of chunks in the shared memory of all blocks: contiguous ones, or as given."""
    _check_multiple("a bulk copy must begin in shared memory at", address)
    place = _place(step, row, address, size)
    if addresses is None:
        return place + np.arange(0, size, CHUNK_BYTES)
    return place + (addresses - address)


def _place(step: Step, row: int, address: int, size: int) -> int:
    blocks = step.blocks
    offset = address - SHARED_BASE
    if offset < 0 or offset + size > blocks.shared.size:
        raise ValueError(
            f"{size} bytes at {address} are outside of the {blocks.shared.size} of the block"
        )
    return offset + int(blocks.shared.base[step.block[row]])


def _check_multiple(what: str, value: int) -> None:
    if value % CHUNK_BYTES:
        raise ValueError(f"{what} a multiple of {CHUNK_BYTES} bytes, got {value}")


def _copy(target: Array, source: Array) -> None:
    target[:] = source


def _add(target: Array, source: Array) -> None:
    """float32; subnormal numbers count as zero, as the ISA says of the present implementation."""
    sums, added = target.view(np.float32), source.view(np.float32)
    sums[:] = _flushed(_flushed(sums) + _flushed(added))


def _flushed(values: Array) -> Array:
    tiny = np.abs(values) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), values), values)
