"""Measure tile configurations on a GPU and propose the tile table: ``python -m benchmarks.tune``.

For the architecture at hand, every candidate of every kernel is checked against the present
configuration, timed on fresh random streams of MBT-B in interleaved rounds, and the fastest
printed as a diff of kernels/table.py. Nothing is changed: a table is a decision, with its
measurement beside it. Candidates that do not fit or fail to compile drop out with their reason.
"""

import argparse
import difflib
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import stamp
from mbt_fast.kernels import table
from mbt_fast.kernels.bottleneck_attention import bottleneck_attention_bwd, bottleneck_attention_fwd
from mbt_fast.kernels.table import HALF, HEAD_DIMS, KERNELS, Tiles

TABLE_FILE = Path(table.__file__)
ROWS, SLOTS, BATCH = (1573, 405), 4, 8
ROUNDS, INNER = 10, 5
DTYPES = {table.HALF: torch.bfloat16, table.SINGLE: torch.float32}
NAMES = {table.HALF: "HALF", table.SINGLE: "SINGLE"}

Key = tuple[str, int, int]


def candidates(itemsize: int) -> list[Tiles]:
    """What is tried: powers of two that a warp group can fill, and two depths of the pipeline."""
    blocks = (32, 64, 128) if itemsize == HALF else (16, 32, 64)
    return [
        Tiles(block_m, block_n, warps, stages)
        for block_m in blocks
        for block_n in blocks
        for warps in (4, 8)
        for stages in (1, 2, 3)
        if block_m * block_n <= 128 * 128
    ]


def main() -> None:
    """Tune the kernels asked for, print the diff, write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--head-dims", nargs="+", type=int, choices=HEAD_DIMS, default=[64])
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    args = parser.parse_args()
    arch = table.arch_of(torch.empty(0, device="cuda"))
    chosen: dict[Key, Tiles] = {}
    records: list[dict[str, Any]] = []
    for kernel in args.kernels:
        for head_dim in args.head_dims:
            key = (kernel, HALF, head_dim)
            results = measure(key, arch, candidates(HALF))
            records += [{"key": key, "tiles": tiles, **result} for tiles, result in results.items()]
            chosen[key] = best(results, table.TABLE[key][table.ARCHS.index(arch)])
    print(propose(TABLE_FILE.read_text(), arch, chosen))
    if args.out:
        document = {"environment": stamp(), "records": records}
        args.out.write_text(json.dumps(document, indent=1) + "\n")


def measure(key: Key, arch: int, tried: list[Tiles]) -> dict[Tiles, dict[str, Any]]:
    """Median milliseconds, or the reason against it, of every candidate; the present one first."""
    present = table.TABLE[key]
    column = table.ARCHS.index(arch)
    call = _problem(key)
    expected = call()
    runs: dict[Tiles, list[float]] = {}
    results: dict[Tiles, dict[str, Any]] = {}
    for tiles in dict.fromkeys([present[column], *tried]):
        try:
            _use(key, column, tiles)
            for actual, wanted in zip(call(), expected, strict=True):
                torch.testing.assert_close(actual, wanted)
            runs[tiles] = []
        except Exception as error:  # a compiler may fail in any way; the others go on
            results[tiles] = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    for _ in range(ROUNDS):
        for tiles, times in runs.items():
            _use(key, column, tiles)
            times.append(_milliseconds(call))
    table.TABLE[key] = present
    return results | {t: {"ms": statistics.median(times)} for t, times in runs.items()}


def _use(key: Key, column: int, tiles: Tiles) -> None:
    row = list(table.TABLE[key])
    row[column] = tiles
    table.TABLE[key] = (row[0], row[1], row[2])


def _problem(key: Key) -> Callable[[], list[Tensor]]:
    """Forward or backward on fresh random streams, as a call without arguments."""
    kernel, itemsize, head_dim = key
    shape = (BATCH, 3, 768 // head_dim, head_dim)
    qkv = [
        torch.randn(shape[0], rows, *shape[1:], device="cuda", dtype=DTYPES[itemsize])
        for rows in ROWS
    ]
    call = (qkv, [None, None], SLOTS, kernel == "fwd_mean", head_dim**-0.5)
    if kernel.startswith("fwd"):
        return lambda: bottleneck_attention_fwd(*call)[0]
    outs, _, kept = bottleneck_attention_fwd(*call)
    douts = [torch.randn_like(out) for out in outs]
    return lambda: bottleneck_attention_bwd(douts, [None, None], outs, kept, *call)


def _milliseconds(call: Callable[[], object]) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(INNER):
        call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / INNER


def best(results: dict[Tiles, dict[str, Any]], present: Tiles) -> Tiles:
    """The fastest, unless the present one is within 1 %, which is noise."""
    timed = {tiles: result["ms"] for tiles, result in results.items() if "ms" in result}
    fastest = min(timed, key=lambda tiles: timed[tiles])
    return present if timed[present] <= 1.01 * timed[fastest] else fastest


def propose(text: str, arch: int, chosen: dict[Key, Tiles]) -> str:
    """A diff of the table's source with the chosen configurations in the column of ``arch``."""
    column = table.ARCHS.index(arch)
    lines = text.splitlines(keepends=True)
    changed = list(lines)
    for (kernel, itemsize, head_dim), tiles in chosen.items():
        pattern = rf'\s*\("{kernel}",\s*{NAMES[itemsize]},\s*{head_dim}\):'
        (index,) = (i for i, line in enumerate(lines) if re.match(pattern, line))
        entries = list(re.finditer(r"Tiles\([^)]*\),?\s*", changed[index]))
        old = entries[column]
        new = f"Tiles({', '.join(map(str, tiles))}){',' if column < 2 else '),'}"
        new = new + "\n" if column == 2 else new.ljust(old.end() - old.start())
        changed[index] = changed[index][: old.start()] + new + changed[index][old.end() :]
    name = "kernels/table.py"
    return "".join(difflib.unified_diff(lines, changed, f"a/{name}", f"b/{name}"))


if __name__ == "__main__":
    main()
