"""Attention of a few streams against what a user could write instead, forward and backward.

FLOPs are those that the op asks for: 2 products forward and 5 backward, no padding, nothing that is
computed again. Vanilla pairwise attention computes something else, and is here for its cost.
"""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.case import Case, Run, Scope, Variant
from benchmarks.peers import Peer, attention_peers

HEADS, HEAD_DIM, SLOTS = 12, 64, 4
MBT_B = (1573, 405)  # 8 frames and 8 s of sound, with four slots
STREAMS: dict[str, tuple[int, ...]] = {
    "MBT-B, 8 s": MBT_B,
    "MBT-B, 4 s, tubelets of 2": (789, 205),
    "MBT-B, 32 frames": (6277, 405),
    "three equal": (1024, 1024, 1024),
}
PRODUCTS = {"forward": 2, "backward": 5}
L2_BYTES = 2**28  # on a GPU inputs rotate through more than this, so that none is in a cache


class Problem(NamedTuple):
    """The streams; ``std`` is the standard deviation of what goes in."""

    name: str
    rows: tuple[int, ...]
    batch: int
    dtype: torch.dtype
    threads: int | None = None
    std: float = 1.0

    def flops(self, mode: str, rows: tuple[int, ...]) -> int:
        """2 per multiply-add."""
        pairs = sum(count * count for count in rows)
        return 2 * PRODUCTS[mode] * self.batch * HEADS * pairs * HEAD_DIM


def cases(scope: Scope) -> Iterator[Case]:
    """Forward and backward of every problem, the most informative ones first."""
    for problem in problems(scope):
        yield from both_modes(problem, scope)


def problems(scope: Scope) -> Iterator[Problem]:
    """MBT-B's two streams; on a GPU other lengths too, small batches first."""
    half, single = torch.bfloat16, torch.float32
    if scope.smoke:
        yield Problem("small", (37, 21), 1, single)
    elif scope.gpu:
        for batch in (1, 8, 64):
            for name, rows in STREAMS.items():
                yield Problem(name, rows, batch, half)
        yield from (Problem("MBT-B, 8 s", MBT_B, batch, torch.float16) for batch in (1, 8, 64))
    else:
        for batch, threads in ((1, 2), (1, 1), (4, 2)):
            for dtype in (half, single):
                yield Problem("MBT-B, 8 s", MBT_B, batch, dtype, threads)
        for dtype in (half, single):
            yield Problem("MBT-B, 8 s, large logits", MBT_B, 1, dtype, 2, std=8.0)


def both_modes(problem: Problem, scope: Scope) -> Iterator[Case]:
    """The problem as two cases."""
    for mode in PRODUCTS:
        yield Case(
            name=problem.name,
            mode=mode,
            shape={"batch": problem.batch, "rows": list(problem.rows), "std": problem.std},
            dtype=problem.dtype,
            variants=partial(variants, problem, mode, scope),
            baseline="sdpa",
            threads=problem.threads,
            graph=mode == "forward" and problem.batch == 1,
            launches=not scope.gpu or problem.batch == 1,
        )


def variants(problem: Problem, mode: str, scope: Scope) -> Mapping[str, Variant]:
    """Every peer on the same streams."""
    copies = _copies(problem, scope)
    found = {}
    for name, peer in attention_peers(scope.device).items():
        if name == "flex_attention" and problem.rows != MBT_B:
            continue  # compiled anew for every shape
        rows = problem.rows
        if peer.joins:
            rows = (sum(rows) - SLOTS * len(rows),)
        run = _forward(peer, copies) if mode == "forward" else _backward(peer, copies)
        found[name] = Variant(run=run, flops=problem.flops(mode, rows))
    return found


def _copies(problem: Problem, scope: Scope) -> list[list[Tensor]]:
    """Enough sets of random packed streams that no set is left in the L2 from its last use."""
    size = 3 * problem.batch * sum(problem.rows) * HEADS * HEAD_DIM * problem.dtype.itemsize
    count = max(1, min(16, L2_BYTES // size)) if scope.gpu else 1
    return [
        [
            problem.std
            * torch.randn(
                problem.batch, rows, 3, HEADS, HEAD_DIM, device=scope.device, dtype=problem.dtype
            )
            for rows in problem.rows
        ]
        for _ in range(count)
    ]


def _forward(peer: Peer, copies: list[list[Tensor]]) -> Run:
    """Attention alone, inputs prepared as the peer asks for."""

    @cache
    def inputs() -> "cycle[list[Tensor]]":
        return cycle([peer.prepare(streams) for streams in copies])

    @torch.no_grad()
    def forward() -> object:
        return peer.attend(next(inputs()), SLOTS)

    return forward


def _backward(peer: Peer, copies: list[list[Tensor]]) -> Run:
    """The backward alone, of graphs that are made in the first call."""

    @cache
    def graphs() -> "cycle[tuple[list[Tensor], list[Tensor], list[Tensor]]]":
        made = []
        for streams in copies:
            leaves = [x.detach().requires_grad_() for x in peer.prepare(streams)]
            outs = list(peer.attend(leaves, SLOTS))
            made.append((leaves, outs, [torch.randn_like(out) for out in outs]))
        return cycle(made)

    def backward() -> object:
        leaves, outs, grads = next(graphs())
        return torch.autograd.grad(outs, leaves, grads, retain_graph=True)

    return backward
