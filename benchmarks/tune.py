"""Measure tile configurations on a GPU and propose the tile table: ``python -m benchmarks.tune``.

For the architecture at hand, every candidate of every kernel is checked against the present
configuration and timed on random streams of MBT-B in interleaved rounds. Where another one is
faster, the row for kernels/table.py is printed. Nothing is changed: a table is a decision, with its
measurement beside it.
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from mbt_fast import bottleneck_attention
from mbt_fast.kernels import table
from mbt_fast.kernels.table import HALF, HEAD_DIMS, KERNELS, Tiles
from mbt_fast.testing import interleaved_times

ROWS, SLOTS, BATCH = (1573, 405), 4, 8
ROUNDS, CALLS = 10, 5

Key = tuple[str, int, int]


def candidates() -> list[Tiles]:
    """What is tried: powers of two that a warp group can fill, and up to three pipeline stages."""
    return [
        Tiles(block_m, block_n, warps, stages)
        for block_m in (32, 64, 128)
        for block_n in (32, 64, 128)
        for warps in (4, 8)
        for stages in (1, 2, 3)
    ]


def main() -> None:
    """Tune the kernels asked for in bfloat16, and print the rows that change."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--head-dims", nargs="+", type=int, choices=HEAD_DIMS, default=[64])
    args = parser.parse_args()
    arch = table.arch_of(torch.empty(0, device="cuda"))
    for key in [(kernel, HALF, head_dim) for kernel in args.kernels for head_dim in args.head_dims]:
        milliseconds = measure(key, arch)
        print(key, {tuple(tiles): round(ms, 4) for tiles, ms in milliseconds.items()})
        present = table.TABLE[key][table.ARCHS.index(arch)]
        tiles = best(milliseconds, present)
        if tiles != present:
            print(proposed(key, arch, tiles))


def measure(key: Key, arch: int) -> dict[Tiles, float]:
    """Median milliseconds of every candidate that compiles and is right; the present one first."""
    present, column = table.TABLE[key], table.ARCHS.index(arch)
    call = problem(key)
    expected = call()
    runs = {}
    for tiles in dict.fromkeys([present[column], *candidates()]):
        run = partial(_with_tiles, key, column, tiles, call)
        try:
            torch.testing.assert_close(run(), expected)
            runs[str(tiles)] = (tiles, run)
        except Exception as error:  # a compiler may fail in any way; the others go on
            print(f"{key}, {tiles}: {type(error).__name__}: {str(error)[:120]}")
    calls = {name: run for name, (_, run) in runs.items()}
    device = torch.device("cuda")
    times = interleaved_times(calls, device, seconds=float("inf"), max_rounds=ROUNDS).seconds
    table.TABLE[key] = present
    return {tiles: 1e3 * median(times[name]) / CALLS for name, (tiles, _) in runs.items()}


def _with_tiles(key: Key, column: int, tiles: Tiles, call: Callable[[], list[Tensor]]) -> object:
    """Some calls, so that a clock's two events do not count."""
    row = list(table.TABLE[key])
    row[column] = tiles
    table.TABLE[key] = (row[0], row[1], row[2])
    return [call() for _ in range(CALLS)][-1]


def problem(key: Key) -> Callable[[], list[Tensor]]:
    """Forward or backward on random streams, as a call without arguments."""
    kernel, _, head_dim = key
    shape = (3, 768 // head_dim, head_dim)
    half, device = torch.bfloat16, "cuda"
    qkv = [torch.randn(BATCH, rows, *shape, device=device, dtype=half) for rows in ROWS]
    streams = [x.requires_grad_(kernel != "fwd") for x in qkv]
    run = partial(bottleneck_attention, streams, SLOTS, update=None, backend="triton")
    if kernel == "fwd":
        return run
    outs = run()
    douts = [torch.randn_like(out) for out in outs]
    return lambda: list(torch.autograd.grad(outs, streams, douts, retain_graph=True))


def best(milliseconds: dict[Tiles, float], present: Tiles) -> Tiles:
    """The fastest, unless the present one is within 1 %, which is noise."""
    fastest = min(milliseconds, key=lambda tiles: milliseconds[tiles])
    return present if milliseconds[present] <= 1.01 * milliseconds[fastest] else fastest


def proposed(key: Key, arch: int, tiles: Tiles) -> str:
    """The row of ``kernels/table.py`` with another configuration for one architecture."""
    row = list(table.TABLE[key])
    row[table.ARCHS.index(arch)] = tiles
    kernel, _, head_dim = key
    return f'("{kernel}", HALF, {head_dim}): ({", ".join(f"Tiles{tuple(each)}" for each in row)}),'


if __name__ == "__main__":
    main()
