"""What a turn of a kernel's inner loop asks of a multiprocessor, counted in its machine code.

Rates are those of NVIDIA's tuning guides and of the CUDA programming guide's table of throughputs.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.aot.sass import Instruction, inner_loops, shortest_turn

PRODUCTS = {80: "HMMA", 90: "HGMMA"}  # in those of sm_100 the shape is in no operand
FLOP_PER_CYCLE = {80: 2048, 90: 4096}  # of the tensor cores, 16-bit operands, float32 sums
ISSUE, EXPONENTIALS, SHARED = 4, 16, 128  # instructions, lanes and bytes per cycle
LANES = 32


class Turn(NamedTuple):
    """One turn of an inner loop, for a whole block, where nothing is masked and nothing waits.

    ``instructions`` are those of a warp. Cycles are those of a multiprocessor if only that unit
    limited it: the schedulers, the tensor cores, the special function units, shared memory. Writes
    of the copy engine are not counted. ``hidden`` is the share of exponentials that run while a
    product of their own warps does.
    """

    instructions: int
    issue: int
    tensor: int
    exponentials: int
    shared: int
    hidden: float


class Resources(NamedTuple):
    """What a block needs; registers of a thread, bytes of the local and of the shared memory."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


def turns(listing: str, arch: int, warps: int) -> list[Turn]:
    """The inner loops with matrix products, in the order of their addresses.

    Args:
        listing: A kernel's SASS.
        arch: 80 or 90.
        warps: How many of a block take part; each warp group on sm_90 takes its own products.
    """
    product = PRODUCTS[arch]
    loops = sorted(inner_loops(listing, product), key=lambda loop: loop[0].address)
    return [turn_of(shortest_turn(loop, product), arch, warps) for loop in loops]


def turn_of(body: Sequence[Instruction], arch: int, warps: int) -> Turn:
    """The cycles of some instructions that each of the warps runs once."""
    runs = [one for one in body if one.predicate != "!PT"]
    groups = warps / 4 if arch == 90 else warps
    flop = groups * sum(_flop(one) for one in runs)
    exponentials = sum(one.opcode.startswith("MUFU") for one in runs)
    read = groups * sum(_product_bytes(one) for one in runs)
    moved = warps * sum(_moved_bytes(one) for one in runs)
    return Turn(
        instructions=len(body),
        issue=round(len(body) * warps / ISSUE),
        tensor=round(flop / FLOP_PER_CYCLE[arch]),
        exponentials=round(exponentials * warps * LANES / EXPONENTIALS),
        shared=round((read + moved) / SHARED),
        hidden=round(_hidden(runs), 2),
    )


def _hidden(body: Sequence[Instruction]) -> float:
    """Of the exponentials of a loop, those between a product and the wait for it."""
    count = hidden = in_flight = 0
    for one in [*body, *body]:  # what is in flight at the end still is at the beginning
        if one.opcode.startswith("HGMMA"):
            in_flight += 1
        elif one.opcode.startswith("WARPGROUP.DEPBAR"):
            in_flight = min(in_flight, int(one.operands.rpartition("0x")[2], 16))
        elif one.opcode.startswith("MUFU"):
            count += 1
            hidden += in_flight > 0
    return hidden / count if count else 0.0


def _flop(one: Instruction) -> int:
    """Of one product: of a warp group ``HGMMA.64xNxK``, of a warp ``HMMA.16816`` or ``.1688``."""
    if found := re.match(r"HGMMA\.64x(\d+)x(\d+)", one.opcode):
        return 2 * 64 * int(found[1]) * int(found[2])
    if found := re.match(r"HMMA\.168(\d+)", one.opcode):
        return 2 * 16 * 8 * int(found[1])
    return 0


def _product_bytes(one: Instruction) -> int:
    """What ``HGMMA`` reads of shared memory: B always, A unless it comes from registers."""
    found = re.match(r"HGMMA\.64x(\d+)x(\d+)", one.opcode)
    if found is None:
        return 0
    in_registers = re.match(r"R\d+, R\d+", one.operands) is not None
    return 2 * int(found[2]) * (int(found[1]) + (0 if in_registers else 64))


def _moved_bytes(one: Instruction) -> int:
    """What a warp moves from or to shared memory.

    Plain loads are of statistics, whose words several lanes share: each takes one cycle.
    """
    name, *suffixes = one.opcode.split(".")
    if name == "LDS":
        return SHARED
    if name in ("LDSM", "STSM"):
        return SHARED * int(suffixes[-1] if suffixes[-1].isdigit() else 1)
    if name not in ("STS", "LDGSTS"):
        return 0
    bits = [int(suffix) for suffix in suffixes if suffix in ("64", "128")]
    return LANES * max(bits, default=32) // 8


SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may have
RESERVED = 1024  # of a multiprocessor's shared memory, by each block


def blocks_per_multiprocessor(needs: Resources, warps: int, arch: int) -> int:
    """How many fit by registers, shared memory and warps."""
    registers = 65536 // (-(-needs.registers // 8) * 8 * LANES * warps)
    shared = (SHARED_MEMORY[arch] + RESERVED) // (needs.shared_bytes + RESERVED)
    return min(registers, shared, 64 // warps, 32)
