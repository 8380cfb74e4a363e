"""What all bulk copies share: operands of one thread, and the checks when a copy is issued."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mbt_fast.testing.ptx.asynchronous import asynchronous
from mbt_fast.testing.ptx.bulk_copies import BulkLoad, BulkStore, chunks_of
from mbt_fast.testing.ptx.descriptor import CHUNK_BYTES
from mbt_fast.testing.ptx.mbarrier import BYTES as MBARRIER_BYTES
from mbt_fast.testing.ptx.mbarrier import found
from mbt_fast.testing.ptx.memory import PROCESS, SHARED_BASE, global_places
from mbt_fast.testing.ptx.move import address_reader
from mbt_fast.testing.ptx.registry import Run
from mbt_fast.testing.ptx.step import Array, Step

Each = Callable[[Step, int, int, int], "str | None"]


def each(act: Each) -> Run:
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


def address_of(operand: Any, space: str) -> Callable[[Step, int, int], int]:
    """A function that reads an address in one thread, given by row and lane."""
    take = address_reader(operand, space)
    return lambda step, row, lane: int(step.full(take(step))[row, lane])


def global_bytes(step: Step, address: int, size: int, row: int = 0) -> Array:
    """Bytes of global memory, uint8, to read and to write; it is the same for all rows."""
    _check_multiple("a bulk copy must begin in global memory at", address)
    _check_multiple("a bulk copy must have", size)
    if not step.blocks.launch.memory.holds(np.array(address), size).all():
        raise ValueError(f"{size} bytes at {address:#x} are outside of all tensors")
    start = int(global_places(np.array(address)))
    return PROCESS[start : start + size]


def shared_bytes(step: Step, address: int, size: int, row: int) -> Array:
    """Bytes of the shared memory of a warp's block, uint8, to read and to write."""
    place = _place(step, row, address, size)
    return step.blocks.shared.flat[place : place + size]


def chunks(step: Step, row: int, address: int, size: int, addresses: Array | None = None) -> Array:
    """Places of chunks in the shared memory of all blocks: contiguous ones, or as given."""
    _check_multiple("a bulk copy must begin in shared memory at", address)
    place = _place(step, row, address, size)
    if addresses is None:
        return place + np.arange(0, size, CHUNK_BYTES)
    return place + (addresses - address)


def issue(step: Step, row: int, thread: int, load: BulkLoad, barrier: int) -> None:
    """Start a copy to shared memory that completes at an mbarrier."""
    if barrier % MBARRIER_BYTES:
        raise ValueError(f"an mbarrier must be at a multiple of {MBARRIER_BYTES}, got {barrier}")
    state, place = asynchronous(step.blocks), _place(step, row, barrier, MBARRIER_BYTES)
    found(state, step, place)
    state.check_seen(step, load.places[None], np.array([[thread]]))
    load.start(step.blocks)
    state.loads[place].append(load)


def defer(
    step: Step, thread: int, line: int, places: Array, write: Callable[[Array], None]
) -> None:
    """Start a copy from shared memory that completes with a group of the thread."""
    state = asynchronous(step.blocks)
    state.check_seen(step, places[None], np.array([[thread]]))
    source = chunks_of(step.blocks)[places // CHUNK_BYTES]
    state.bulk[thread].uncommitted.append(BulkStore(line, places, source, write))


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
