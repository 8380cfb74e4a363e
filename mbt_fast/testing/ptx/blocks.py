"""The thread blocks that run together: registers, shared memory, places in the program, waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np

from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.memory import SHARED_BASE, Memory, Shared
from mbt_fast.testing.ptx.operands import FILES, NUMPY, WIDTHS
from mbt_fast.testing.ptx.proxies import Proxies
from mbt_fast.testing.ptx.races import Races, applies
from mbt_fast.testing.ptx.step import Array, Reason, Step
from mbt_fast.testing.ptx.syntax import Kernel

GONE = np.iinfo(np.int64).max  # the place of a thread that has left the program
BARRIERS = 16


class Launch(NamedTuple):
    """What is the same in all blocks of a launch."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    parameters: Array  # bytes
    parameter_address: int
    constants: dict[str, int]  # addresses of arrays in global and constant memory
    memory: Memory
    shared_bytes: int  # of the extern array


class Wait(NamedTuple):
    """Threads that wait at an instruction until ``ready`` says so."""

    step: Step
    lanes: Array
    ready: Callable[[], Array]
    reason: Reason
    pc: int


class Blocks:
    """Some blocks of a launch and all that they have.

    Attributes:
        launch: What all blocks share.
        files: By type, a list of registers, each ``[warps, 32]``; types of one width share bytes.
        numbers: 0 to the number of warps; a warp's block is ``block_of_warp``.
        pc: Place of each thread in the program, int64 ``[warps, 32]``; ``GONE`` after its end.
        parked: Which threads wait, bool ``[warps, 32]``.
        registers: By class, ``[registers, warps, 32]``; ``files`` shows the same.
        shared: Shared memory.
        races: What warps have done to shared memory; ``None`` where not only barriers order them.
        proxies: What the async proxy has not seen of it; ``None`` where none uses it.
        state: What families of instructions keep, by a name of their own.
        deferred: Asynchronous work that is done when no thread can run, oldest first.
        at_end: What is done when all threads have left the program.
    """

    def __init__(self, launch: Launch, indices: Array) -> None:
        """Start the blocks with these linear indices in the grid."""
        self.launch = launch
        x, y, z = launch.block
        self.threads = x * y * z
        self.warps_each = -(-self.threads // 32)
        self.count = len(indices)
        warps = self.warps_each * self.count
        self.numbers = np.arange(warps)
        self.block_of_warp = np.repeat(np.arange(self.count), self.warps_each)
        self.warp_in_block = np.tile(np.arange(self.warps_each), self.count)
        thread = self.warp_in_block[:, None] * 32 + np.arange(32)
        self.pc = np.where(thread < self.threads, 0, GONE)
        self.parked = np.zeros((warps, 32), bool)
        self.waits: list[Wait] = []
        self.registers = _registers(launch.kernel.registers, warps)
        self.files = _register_files(self.registers)
        self.shared = Shared(self.count, launch.kernel.shared_bytes + launch.shared_bytes)
        self.proxies: Proxies | None = None
        if launch.kernel.uses_async_proxy:
            self.proxies = Proxies(len(self.shared.flat), warps * 32)
        self.specials = _specials(launch, indices[self.block_of_warp], thread)
        self.state: dict[str, Any] = {}
        self.deferred: deque[Callable[[], None]] = deque()
        self.at_end: list[Callable[[], None]] = []
        self.arrived = np.zeros((self.count, BARRIERS), np.int64)
        self.expected = np.zeros((self.count, BARRIERS), np.int64)
        self.races: Races | None = None
        if self.warps_each > 1 and applies(launch.kernel):
            self.races = Races(self)
        self.barrier = np.full(warps, -1)  # that each warp waits at

    @property
    def live(self) -> Array:
        """Threads that exist and have not left the program, bool ``[warps, 32]``."""
        return self.pc != GONE

    def special(self, name: str, step: Step) -> Array:
        """A special register of a group's threads.

        Raises:
            PtxError: It is not implemented.
        """
        if name not in self.specials:
            step.fail(f"the special register {name} is not implemented")
        value = self.specials[name]
        return value[step.at] if value.ndim else value

    def address_of(self, name: str) -> int:
        """Address of a variable in its state space.

        Raises:
            PtxError: There is none of this name.
        """
        kernel = self.launch.kernel
        if name in kernel.shared:
            return SHARED_BASE + kernel.shared[name].offset
        if name in kernel.local:
            return SHARED_BASE + kernel.local[name].offset  # as the first shared address
        if name in kernel.parameters:
            return self.launch.parameter_address + kernel.parameters[name].offset
        if name in self.launch.constants:
            return self.launch.constants[name]
        raise PtxError(f"the program has no variable {name}")

    def park(self, step: Step, lanes: Array, ready: Callable[[], Array], reason: Reason) -> None:
        """See ``Step.park``."""
        self.parked[step.at] |= lanes
        self.waits.append(Wait(step, lanes.copy(), ready, reason, step.pc))

    def unpark(self, warps: Array) -> None:
        """Let warps go on, whatever they wait for."""
        self.parked[warps] = False
        chosen = np.zeros(len(self.numbers), bool)
        chosen[warps] = True
        for wait in self.waits:
            wait.lanes[chosen[wait.step.at]] = False
        self.waits = [wait for wait in self.waits if wait.lanes.any()]

    def wake(self) -> bool:
        """Let those go on whose wait is over; whether there are any."""
        kept, woken = [], False
        for wait in self.waits:
            ready = wait.lanes & wait.ready()
            if ready.any():
                woken = True
                self.parked[wait.step.at] &= ~ready
            left = wait.lanes & ~ready
            if left.any():
                kept.append(wait._replace(lanes=left))
        self.waits = kept
        return woken

    def fail(self, message: str, pc: int, warp: int, lane: int) -> NoReturn:
        """Stop, and say where.

        Raises:
            PtxError: Always.
        """
        instruction = self.launch.kernel.code[pc]
        cta = tuple(int(self.specials[f"%ctaid.{axis}"][warp, 0]) for axis in "xyz")
        raise PtxError(
            message,
            instruction.line,
            instruction.text,
            cta,  # type: ignore[arg-type]
            int(self.warp_in_block[warp]),
            lane,
        )


def _registers(counts: dict[str, int], warps: int) -> dict[str, Array]:
    """Registers start as 0xFF, so that one that nobody wrote is NaN; predicates as false."""
    bits: dict[str, Array] = {
        kind: np.full((counts.get(kind, 0), warps, 32), -1, f"i{width}").view(f"u{width}")
        for kind, width in WIDTHS.items()
    }
    return bits | {"pred": np.zeros((counts.get("pred", 0), warps, 32), bool)}


def _register_files(registers: dict[str, Array]) -> dict[str, list[Array]]:
    """The same registers by the types that numpy sees in them."""
    return {
        name: list(registers["pred" if name == "pred" else f"b{name[1:]}"].view(NUMPY[name]))
        for name in FILES
    }


def _specials(launch: Launch, block: Array, thread: Array) -> dict[str, Array]:
    """Special registers: ``[warps, 32]`` each, or scalars."""
    found: dict[str, Array] = {}
    place, size = thread, launch.block
    index = np.broadcast_to(block[:, None], thread.shape)
    for axis, threads, blocks in zip("xyz", size, launch.grid, strict=True):
        found[f"%tid.{axis}"], place = place % threads, place // threads
        found[f"%ctaid.{axis}"], index = index % blocks, index // blocks
        found[f"%ntid.{axis}"] = np.asarray(threads)
        found[f"%nctaid.{axis}"] = np.asarray(blocks)
        found[f"%cluster_ctaid.{axis}"] = np.asarray(0)
        found[f"%cluster_nctaid.{axis}"] = np.asarray(1)
    found["%cluster_ctarank"] = np.asarray(0)
    found["%cluster_nctarank"] = np.asarray(1)
    lane = thread % 32
    found["%laneid"], found["%warpid"] = lane, thread // 32
    found["%lanemask_eq"] = 1 << lane
    found["%lanemask_lt"] = (1 << lane) - 1
    found["%lanemask_le"] = (2 << lane) - 1
    found["%lanemask_ge"] = 0xFFFFFFFF & ~((1 << lane) - 1)
    found["%lanemask_gt"] = 0xFFFFFFFF & ~((2 << lane) - 1)
    found["WARP_SZ"] = np.asarray(32)
    return found
