"""Instructions that the four warps of a group execute together, however they come to them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mbt_fast.testing.ptx.asynchronous import Asynchronous, asynchronous
from mbt_fast.testing.ptx.fragments import WARPS
from mbt_fast.testing.ptx.products import Group
from mbt_fast.testing.ptx.registry import Run
from mbt_fast.testing.ptx.step import Array, Step


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


def collective(act: Act) -> Run:
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


def of_groups(step: Step, value: Any) -> Array:
    """A value that all threads of a group share, ``[groups]``.

    Raises:
        PtxError: They do not.
    """
    rows = np.reshape(step.full(value), (-1, WARPS * 32))
    if (rows != rows[:, :1]).any():
        step.fail("an operand must be the same in all threads of a warp group")
    return np.ascontiguousarray(rows[:, 0])
