"""Who runs next: the threads that are least far in the program, so that paths meet again."""

from itertools import count

import numpy as np

from mbt_fast.testing.ptx.blocks import GONE, Blocks
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.registry import Run
from mbt_fast.testing.ptx.step import Array, Step

# Turns of others after which warps go first that could have run: one that holds a lock must not
# wait for those that spin on it. An order of importance is meant to be kept for longer. Waits that
# are over are looked for when nothing else can run, and from time to time.
PATIENCE, PATIENCE_IN_ORDER, TIME_TO_WAKE = 256, 4096, 2**16


def run(blocks: Blocks, code: list[Run], seed: int | None) -> None:
    """Run some blocks to their end.

    Without a seed all warps at the lowest place go together. With one, warps have an order of
    importance that is drawn from it, and the first that can run goes as far as it can: mistakes
    that depend on the order of warps show.

    Raises:
        PtxError: A thread did what is not defined, or all wait for one another.
    """
    order = None
    if seed is not None:
        order = np.random.default_rng(seed).permutation(blocks.warps_each)[blocks.warp_in_block]
    patience = PATIENCE if order is None else PATIENCE_IN_ORDER
    ran = np.zeros(len(blocks.numbers), np.int64)  # the turn in which a warp ran last, or waited
    with np.errstate(all="ignore"):
        for turn in count():
            if turn % TIME_TO_WAKE == TIME_TO_WAKE - 1:
                blocks.wake()
            group = _next_group(blocks, order, ran < turn - patience)
            if group is not None:
                ran[group[0].at] = turn
                ran[blocks.parked.all(1)] = turn
                _run_straight(blocks, code, *group)
            elif not blocks.live.any():
                break
            elif not blocks.wake() and not _finish_something(blocks):
                _deadlock(blocks)
        for finish in blocks.at_end:
            finish()


def _next_group(blocks: Blocks, order: Array | None, is_due: Array) -> tuple[Step, int, int] | None:
    """Some warps at one place, the place, and the next place at which others wait for them."""
    place = np.where(blocks.parked, GONE, blocks.pc)
    due = is_due & (place != GONE).any(1)
    if due.any():
        place[~due] = GONE
    elif order is not None:
        runs = (place != GONE).any(1)
        if runs.any():
            place[order != order[runs].min()] = GONE
    pc = int(place.min())
    if pc == GONE:
        return None
    lanes = place == pc
    limit = int(np.where(lanes, GONE, place).min())
    chosen = lanes.any(1)
    warps = np.flatnonzero(chosen)
    first, n = int(warps[0]), len(warps)
    contiguous = int(warps[-1]) - first + 1 == n
    at = slice(first, first + n) if contiguous else warps
    mask = lanes[at]
    return Step(blocks, at, n, None if mask.all() else mask), pc, limit


def _run_straight(blocks: Blocks, code: list[Run], step: Step, pc: int, limit: int) -> None:
    """Run until the group branches, waits, or meets others."""
    limit = min(limit, len(code))
    while pc < limit:
        step.pc = pc
        if code[pc](step):
            return
        pc += 1
    step.go_to(step.lanes, pc if pc < len(code) else GONE)


def _finish_something(blocks: Blocks) -> bool:
    """Do the oldest asynchronous work; whether there was any."""
    if not blocks.deferred:
        return False
    blocks.deferred.popleft()()
    return True


def _deadlock(blocks: Blocks) -> None:
    stuck = blocks.live & blocks.parked
    warp, lane = (int(i) for i in np.argwhere(stuck)[0])
    reasons = {
        wait.reason if isinstance(wait.reason, str) else wait.reason() for wait in blocks.waits
    }
    reasons |= {f"barrier {int(b)}" for b in np.unique(blocks.barrier[blocks.barrier >= 0])}
    pc = int(blocks.pc[warp, lane])
    if blocks.barrier[warp] >= 0:
        pc -= 1
    where: dict[int, int] = {}
    for place, threads in zip(*np.unique(blocks.pc[stuck], return_counts=True), strict=True):
        index = min(int(place), len(blocks.launch.kernel.code) - 1)
        where[blocks.launch.kernel.code[index].line] = int(threads)
    places = ", ".join(f"{count} threads near line {line}" for line, count in where.items())
    message = f"all threads wait: for {', '.join(sorted(reasons))}; {places}"
    try:
        blocks.fail(message, pc, warp, lane)
    except PtxError as error:
        raise PtxError(message, error.line, error.text, error.cta, error.warp, error.lane) from None
