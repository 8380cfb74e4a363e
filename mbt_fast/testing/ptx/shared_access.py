"""Loads and stores of shared memory by threads, as every instruction makes them."""

from typing import Any

import numpy as np

from mbt_fast.testing.ptx.step import Array, Step


def load(step: Step, places: Array, kind: Any, count: int) -> Array:
    """Values ``[n, 32, count]`` of a numpy type at offsets ``[n, 32]``.

    Raises:
        PtxError: Another warp writes there, and no barrier is between.
    """
    races = step.blocks.races
    if races is not None:
        size = np.dtype(kind).itemsize * count
        races.read(step, races.touch(step.warps, places, size, step.lanes))
    return step.blocks.shared.read(places, kind, count)


def store(
    step: Step,
    places: Array,
    values: Array,
    line: int,
    lanes: Array | None = None,
    warps: Array | None = None,
) -> None:
    """Put values ``[n, lanes, count]`` at offsets ``[n, lanes]``.

    Args:
        step: Who executes the instruction.
        places: Offsets in the shared memory of all blocks.
        values: What is stored.
        line: Of the instruction that asked for it.
        lanes: Which threads store, if not all active ones.
        warps: Whose threads they are, if not those of the step.

    Raises:
        PtxError: Another warp reads or writes there, and no barrier is between.
    """
    lanes = step.lanes if lanes is None else lanes
    races = step.blocks.races
    chosen = values[lanes]
    if races is not None:
        data = np.ascontiguousarray(chosen).view(np.uint8)
        touch = races.touch(step.warps if warps is None else warps, places, data.shape[-1], lanes)
        races.write(step, touch, data, line)
    step.blocks.shared.write(places[lanes], chosen)
