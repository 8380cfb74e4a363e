"""How fast attention should be on an H100, by the turns of its loops: predicted, not measured.

A turn takes ``max(v, t) + unhidden * min(v, t)`` cycles of a multiprocessor. ``v`` is what the
threads need, the larger of issue and exponentials; ``t`` what their products need, the larger of
tensor cores and shared memory. With one warp group alone on a multiprocessor nothing is hidden:
``v + t``.

A walk of S rows has ``ceil(S / block_m)`` items for each head of each example, and each item
``ceil(S / block_n) + start / block_n`` turns: what stands before and behind a loop costs as much
as ``start`` rows of it. Items go to all multiprocessors evenly, unless blocks stay and take items
in rounds: then the block counts that takes longest. Warp groups that have no row of an item may
skip it. The others then need their share of ``v`` and ``t``, but the start takes as long as ever.
Small kernels take the time of the bytes that they move. ``useful FLOP / time`` is the prediction;
padding of tiles is of no use.

``unhidden`` and ``start`` are fitted to published speeds (``benchmarks/aot/calibration.py``): once
to a kernel that waits for its products before the exponentials, once to one that does not. Between
the two goes the share of exponentials that a kernel's machine code hides.
"""

from collections.abc import Sequence
from itertools import count
from math import ceil, gcd
from typing import NamedTuple

from benchmarks.aot.turns import Turn

MULTIPROCESSORS = 132
SUSTAINED = 790.0  # TFLOP/s of cuBLAS on an H200, in bfloat16
CYCLES = SUSTAINED * 1e12 / (MULTIPROCESSORS * 4096)  # per second
BYTES = 3.0e12  # per second, of a large copy


class Fit(NamedTuple):
    """What was fitted, see the head of this file."""

    unhidden: float
    start: float


APART = Fit(unhidden=0.845, start=98)  # Triton's tutorial
BESIDE = Fit(unhidden=0.54, start=184)  # FlashAttention-3, forward
BACKWARD_START = 471  # FlashAttention-3, its small kernels included


class Walk(NamedTuple):
    """A kernel whose items walk along the rows."""

    turn: Turn
    block_m: int
    block_n: int
    groups: int  # warp groups on a multiprocessor that multiply
    start: float | None = None  # instead of the fitted one
    stays: bool = False  # blocks do, one on a multiprocessor
    skips: bool = False  # groups do, where they have no row


class Problem(NamedTuple):
    """Streams of one length."""

    rows: int
    heads: int  # examples times heads
    head_dim: int


def fit_of(turn: Turn) -> Fit:
    """Between the two fits, by the share of exponentials that is hidden."""
    both = zip(APART, BESIDE, strict=True)
    return Fit(*(apart + (beside - apart) * turn.hidden for apart, beside in both))


def cycles_of_turn(turn: Turn, groups: int, unhidden: float) -> float:
    """Of a multiprocessor, for one block's turn."""
    threads, products = max(turn.issue, turn.exponentials), max(turn.tensor, turn.shared)
    share = unhidden if groups > 1 else 1.0
    return max(threads, products) + share * min(threads, products)


def cycles_of_item(walk: Walk, rows: int, own: int) -> float:
    """Of one that walks along some rows, and has ``own`` rows itself."""
    unhidden, start = fit_of(walk.turn)
    start = start if walk.start is None else walk.start
    groups = ceil(own / (walk.block_m / walk.groups)) if walk.skips else walk.groups
    whole = cycles_of_turn(walk.turn, walk.groups, unhidden)
    turn = groups / walk.groups * cycles_of_turn(walk.turn, groups, unhidden)
    return ceil(rows / walk.block_n) * turn + start / walk.block_n * whole


def seconds_of_walk(walk: Walk, problem: Problem) -> float:
    """Of one kernel."""
    rows = problem.rows
    firsts = range(0, rows, walk.block_m)
    head = [cycles_of_item(walk, rows, min(rows - first, walk.block_m)) for first in firsts]
    even = problem.heads * sum(head) / MULTIPROCESSORS
    cycles = longest_block(head * problem.heads, shift_of(len(head))) if walk.stays else even
    return cycles / CYCLES


def shift_of(tiles: int) -> int:
    """As ``csrc/cuda/hopper/items.cuh`` chooses it, for one length."""
    return next(shift for shift in count() if gcd(MULTIPROCESSORS + shift, tiles) == 1)


def longest_block(items: Sequence[float], shift: int) -> float:
    """Cycles of the block that takes longest, if each round moves the blocks on by ``shift``."""
    blocks = [0.0] * MULTIPROCESSORS
    for number, cycles in enumerate(items):
        rounds, place = divmod(number, MULTIPROCESSORS)
        blocks[(place - rounds * shift) % MULTIPROCESSORS] += cycles
    return max(blocks)


def tflops(
    walks: list[Walk], products: int, problem: Problem, bytes_per_channel: float = 0
) -> float:
    """Useful TFLOP/s of kernels one after the other.

    Args:
        walks: The large kernels.
        products: Of the rows with each other: two in the forward, five in the backward.
        problem: What is computed.
        bytes_per_channel: What small kernels move, for each channel of each row of each head.
    """
    rows, heads, head_dim = problem
    moved = bytes_per_channel * rows * heads * head_dim
    time = sum(seconds_of_walk(walk, problem) for walk in walks) + moved / BYTES
    return products * 2.0 * rows**2 * head_dim * heads / time / 1e12


def limit_of(walks: list[Walk]) -> str:
    """What the walks ask most of, by cycles."""
    totals = {
        name: sum(getattr(walk.turn, name) / walk.block_m / walk.block_n for walk in walks)
        for name in ("issue", "tensor", "exponentials", "shared")
    }
    return max(totals, key=lambda name: totals[name])
