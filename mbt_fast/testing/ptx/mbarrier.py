"""mbarrier instructions: init, inval, arrive, expect_tx, complete_tx and waits for a parity."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mbt_fast.testing.ptx.asynchronous import Asynchronous, asynchronous
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.mbarrier_object import MBarrier
from mbt_fast.testing.ptx.move import address_reader
from mbt_fast.testing.ptx.operands import reader, writer
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import Instruction, Sink

BYTES = 8


@op("mbarrier")
def mbarrier(code: Instruction) -> Run:
    """Any of the instructions on objects in the block's own shared memory."""
    if not code.has("b64") or not (code.has("shared::cta") or code.has("shared")):
        raise PtxError("only mbarriers in shared::cta memory are implemented")
    if code.modifiers[0] == "try_wait":
        return _try_wait(code)
    act = ACTS.get(code.modifiers[0])
    if act is None:
        raise PtxError(f"mbarrier.{code.modifiers[0]} is not implemented")
    has_state = code.modifiers[0] == "arrive"
    if has_state and not isinstance(code.operands[0], Sink):
        raise PtxError("the state that mbarrier.arrive returns is not implemented")
    operands = code.operands[has_state:]
    take = address_reader(operands[0], "shared")
    count = reader(operands[1], "u32") if len(operands) > 1 else None

    def run(step: Step) -> None:
        state = asynchronous(step.blocks)
        counts = step.full(1 if count is None else count(step))
        for row, lane, place in _active(step, take):
            try:
                act(state, step, code, place, int(counts[row, lane]))
            except ValueError as error:
                _fail(step, str(error), row, lane)

    return run


def _init(state: Asynchronous, step: Step, code: Instruction, place: int, count: int) -> None:
    if place in state.barriers:
        raise ValueError("mbarrier.init of an mbarrier that is in use; mbarrier.inval comes first")
    state.barriers[place] = MBarrier(count)
    _bytes(step, place)[:] = _SEAL


def _inval(state: Asynchronous, step: Step, code: Instruction, place: int, count: int) -> None:
    found(state, step, place)
    del state.barriers[place]


def _arrive(state: Asynchronous, step: Step, code: Instruction, place: int, count: int) -> None:
    barrier = found(state, step, place)
    if code.has("expect_tx"):
        barrier.expect(count)
        count = 1
    barrier.arrive(count)


def _expect(state: Asynchronous, step: Step, code: Instruction, place: int, count: int) -> None:
    found(state, step, place).expect(count)


def _complete(state: Asynchronous, step: Step, code: Instruction, place: int, count: int) -> None:
    found(state, step, place).complete(count)


ACTS: dict[str, Callable[[Asynchronous, Step, Instruction, int, int], None]] = {
    "init": _init,
    "inval": _inval,
    "arrive": _arrive,
    "expect_tx": _expect,
    "complete_tx": _complete,
}
_SEAL = np.frombuffer(b"mbarrier", np.uint8)  # what its bytes hold is nobody's business


def found(state: Asynchronous, step: Step, place: int) -> MBarrier:
    """The mbarrier at a place in the shared memory of all blocks.

    Raises:
        ValueError: There is none, or something else was written over it.
    """
    barrier = state.barriers.get(place)
    if barrier is None:
        raise ValueError("there is no mbarrier at this address: mbarrier.init must come first")
    if not np.array_equal(_bytes(step, place), _SEAL):
        raise ValueError("the mbarrier at this address was overwritten")
    return barrier


def _bytes(step: Step, place: int) -> Array:
    return step.blocks.shared.flat[place : place + BYTES]


def _try_wait(code: Instruction) -> Run:
    """Threads whose phase is complete go on; a warp without any waits, as the ISA allows."""
    if not code.has("parity"):
        raise PtxError("only waits for a parity are implemented")
    put = writer(code.operands[0], "pred")
    take = address_reader(code.operands[1], "shared")
    parity = reader(code.operands[2], "u32")

    def run(step: Step) -> bool | None:
        state = asynchronous(step.blocks)
        places = step.blocks.shared.places(step, step.full(take(step)), BYTES)
        parities = step.full(parity(step))
        step.require(parities <= 1, "the parity of a phase must be 0 or 1")
        done = _done(state, step, places, parities, observe=True) & step.lanes
        goes = np.any(done, axis=1, keepdims=True) & step.lanes
        if goes.any():
            put(step.narrowed(goes), done[goes.any(axis=1)])
        if goes.all() or (goes == step.lanes).all():
            return None

        def ready() -> Array:
            _land(state, step, np.unique(places[waits]))
            return _done(state, step, places, parities, observe=False)

        waits = step.lanes & ~goes
        first = state.barriers[int(places[waits][0])]
        return step.park(waits, ready, lambda: f"an mbarrier in {first}")

    return run


def _done(
    state: Asynchronous, step: Step, places: Array, parities: Array, *, observe: bool
) -> Array:
    """Whether the phases that threads wait for are complete, bool ``[n, 32]``."""
    done = np.zeros(step.shape, bool)
    lanes = step.lanes
    keys = places * 2 + parities
    for key in np.unique(keys[lanes]).tolist():
        try:
            barrier = found(state, step, key // 2)
        except ValueError as error:
            step.fail(str(error), lanes & (keys == key))
        if (barrier.observe if observe else barrier.is_complete)(key % 2):
            done |= keys == key
    return done


def _land(state: Asynchronous, step: Step, places: Array) -> None:
    """Complete the copies that signal the mbarriers at some places."""
    for place in places.tolist():
        for load in state.loads.pop(place, ()):
            problem = load.land(step.blocks)
            try:
                found(state, step, place).complete(load.size)
            except ValueError as error:
                problem = problem or str(error)
            if problem:
                step.fail(problem)


def _active(step: Step, take: Any) -> Iterator[tuple[int, int, int]]:
    """Row, lane and the mbarrier's place, of each active thread."""
    places = step.blocks.shared.places(step, step.full(take(step)), BYTES)
    for row, lane in np.argwhere(step.lanes).tolist():
        yield row, lane, int(places[row, lane])


def _fail(step: Step, message: str, row: int, lane: int) -> None:
    lanes = np.zeros(step.shape, bool)
    lanes[row, lane] = True
    step.fail(message, lanes)
