"""Fences, prefetches, and registers that warps hand over (setmaxnreg)."""

import numpy as np

from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.move import address_reader
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import Immediate, Instruction
from mbt_fast.testing.ptx.tensor_copies import tensor_at

ORDERS = ("sc", "acq_rel", "acquire", "release")
SCOPES = ("cta", "cluster", "gpu", "sys", "gl")
PROXIES = ((), ("shared::cta",), ("shared::cluster",))
FEWEST, MOST, REGISTER_STEP = 24, 256, 8


@op("fence", "membar")
def fence(code: Instruction) -> Run:
    """Between proxies; other fences order what runs in order here.

    fence.mbarrier_init is one of these: it is for other blocks of a cluster, and bulk copies use
    mbarriers through the generic proxy.
    """
    words = code.modifiers
    if words[:2] == ("proxy", "async"):
        if words[2:] not in PROXIES:
            raise PtxError(f"fence.{'.'.join(words)} is not implemented")
        return _between_proxies
    if words[:2] == ("proxy", "tensormap::generic"):
        return lambda step: None  # maps are read where a copy is issued
    thread_fence = words[-1] in SCOPES and all(w in (*ORDERS, *SCOPES) for w in words)
    if thread_fence or words == ("mbarrier_init", "release", "cluster"):
        return lambda step: None
    raise PtxError(f"fence.{'.'.join(words)} is not implemented")


def _between_proxies(step: Step) -> None:
    if step.blocks.proxies is not None:
        step.blocks.proxies.fence(step.threads[step.lanes])


@op("prefetch")
def prefetch(code: Instruction) -> Run:
    """Changes no value; what is prefetched as a tensor map must be one."""
    if not code.has("tensormap"):
        return lambda step: None
    take = address_reader(code.operands[0], "global")

    def run(step: Step) -> None:
        for address in np.unique(step.full(take(step))[step.lanes]).tolist():
            try:
                tensor_at(step, address)
            except ValueError as error:
                step.fail(str(error))

    return run


@op("setmaxnreg")
def setmaxnreg(code: Instruction) -> Run:
    """A warp gives registers to its block's pool, or takes some when there are enough."""
    operand = code.operands[0]
    if not isinstance(operand, Immediate) or not code.has("sync", "aligned", "u32"):
        raise PtxError("setmaxnreg must be sync.aligned.u32 with a constant")
    count, takes = operand.value, code.has("inc")
    if not FEWEST <= count <= MOST or count % REGISTER_STEP:
        raise PtxError(
            f"setmaxnreg must ask for a multiple of {REGISTER_STEP} from {FEWEST} to {MOST}, "
            f"got {count}"
        )

    def run(step: Step) -> bool | None:
        step.whole_warps()
        owned, pool = _registers(step)
        at, block = step.at, step.block
        asked = count - owned[at]
        if (asked > 0).any() if not takes else (asked < 0).any():
            word = "inc" if takes else "dec"
            step.fail(f"setmaxnreg.{word} {count} in a warp that has {int(owned[at].max())}")
        short = np.zeros(step.n, bool)
        for row in range(step.n):  # one after the other, as the pool is shared
            if asked[row] > pool[block[row]]:
                short[row] = True
            else:
                pool[block[row]] -= asked[row]
                owned[step.warps[row]] = count
        if not short.any():
            return None
        lanes = np.repeat(short[:, None], 32, axis=1)

        def ready() -> Array:
            return np.repeat((asked <= pool[block])[:, None], 32, axis=1)

        return step.park(lanes, ready, f"{count} registers of the block's pool")

    return run


def _registers(step: Step) -> tuple[Array, Array]:
    """Registers per thread that each warp has, and of each block how many are free, by warp."""
    blocks = step.blocks
    kept: tuple[Array, Array] | None = blocks.state.get("registers")
    if kept is None:
        start = blocks.launch.kernel.registers_at_launch(blocks.threads)
        kept = np.full(len(blocks.numbers), start), np.zeros(blocks.count, np.int64)
        blocks.state["registers"] = kept
    return kept
