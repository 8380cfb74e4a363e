"""From which size on kernels win, by instruction set: measured, and beside it what ``auto`` has.

python -m benchmarks.thresholds --env NAME     measure; write results/NAME-avx2 and results/NAME
python -m benchmarks.thresholds                print what the records say

An instruction set below the CPU's best is chosen for our kernels by ``MBT_FAST_CPU``. Torch is held
to it as far as it can be (``HELD``); the record says by which variables, and what ATen reports.
oneDNN is not held: its reference code, which then multiplies bfloat16, runs on no CPU of that kind.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tabulate import tabulate

from benchmarks.machine import info
from benchmarks.records import RESULTS, ROOT, Results, Row, all_results
from mbt_fast.dispatch import BACKENDS
from mbt_fast.profiling.machine import dtype_name

HELD = {"avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}}
# As in ``make bench``: processes keep what they free.
MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
OP = "bottleneck_attention"
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
CPU_MIN_SIZE = next(row.min_size for row in BACKENDS if row.name == "cpu")
OTHERS = ("bias_gelu", "add_layer_norm", "residual_add")
FILE = "thresholds.json"
PYTEST = (sys.executable, "-m", "pytest", "-q", "--seconds=0.6")  # four minutes in all


class Threshold(NamedTuple):
    """What a record says of one dtype: the size from which on kernels win every case."""

    instruction_set: str
    dtype: str
    in_use: int | None
    recorded: int | None


def cpu_records() -> list[Results]:
    """The records of CPUs that have ``bench_auto``."""
    return [r for r in all_results() if r.machine["capability"] is None and r.select(case="auto")]


def stock_over_kernel(row: Row) -> float:
    """How many times faster the kernel is than torch, in the worst run."""
    times = (run["ms"] for run in row.runs)
    return min(ms[row["baseline"]]["quick"] / ms["cpu"]["quick"] for ms in times)


def recorded(rows: Sequence[Row]) -> int | None:
    """The least length from which on the kernel wins at every measured length; ``None`` if none."""
    least = None
    for size in sorted({max(row["shape"]["rows"]) for row in rows}, reverse=True):
        if any(stock_over_kernel(r) < 1 for r in rows if max(r["shape"]["rows"]) == size):
            break
        least = size
    return least


def thresholds(everyone: Sequence[Results]) -> Iterator[Threshold]:
    """Of every record of ``bench_auto``, the newest of a machine and instruction set first."""
    for results in everyone:
        for dtype in DTYPES:
            name, isa = dtype_name(dtype), results.machine["instruction_set"]
            rows = results.select(case="auto", dtype=name)
            if rows:
                yield Threshold(isa, name, CPU_MIN_SIZE[isa][OP].get(dtype), recorded(rows))


def losses(results: Results) -> Iterator[str]:
    """The recorded cases in which what ``auto`` takes now is too slow, or was not timed."""
    sizes = CPU_MIN_SIZE[results.machine["instruction_set"]][OP]
    for row in results.select(case="auto"):
        length = max(row["shape"]["rows"])
        least = sizes.get(getattr(torch, row["dtype"]))
        taken = "cpu" if least is not None and length >= least else "sdpa"
        ratio = row.ratio.median if taken == row["taken"] else stock_over_kernel(row)
        if taken == "sdpa" != row["taken"]:
            yield f"{row.name}: auto left it to {row['taken']} then, and to {taken} now"
        elif ratio < allowed(length):
            yield f"{row.name}: {ratio:.2f} times as fast as torch, by {taken}"


def allowed(length: int) -> float:
    """How many times as fast as torch ``auto`` must be at least, in streams of so many rows.

    Where torch's kernel runs, the host's cost of a call is the loss, and a call of 16 rows takes
    25 us. The rest is for the noise of a record.
    """
    return 0.97 if length >= 48 else 0.9 if length >= 16 else 0.8


def measure(env: str, instruction_set: str, best: str, options: Sequence[str]) -> Path:
    """Run the benchmarks in a process of their own; return the record."""
    suffix = "" if instruction_set == best else f"-{instruction_set}"
    path = RESULTS / f"{env}{suffix}" / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    held: Mapping[str, str] = HELD.get(instruction_set, {}) if suffix else {}
    ops = ["auto", *(OTHERS if suffix else ())]  # of the best, make bench has the others
    files = [f"benchmarks/bench_{op}.py" for op in ops]
    subprocess.run(
        [*PYTEST, *files, f"--benchmark-json={path}", *options],
        env={**os.environ, **MEMORY, **held, "MBT_FAST_CPU": instruction_set},
        cwd=ROOT,
        check=True,
    )
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure if a name is given, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", metavar="NAME", help="measure, and write records of this machine")
    best = info()["cpu kernels"]["in use"]
    parser.add_argument(
        "--instruction-sets", nargs="+", default=list(dict.fromkeys(("avx2", best))), metavar="ISA"
    )
    args, options = parser.parse_known_args(arguments)
    start = time.monotonic()
    for isa in args.instruction_sets if args.env else ():
        print(measure(args.env, isa, best, options))
    if args.env:
        print(f"{time.monotonic() - start:.0f} s")
    everyone = cpu_records()
    print(tabulate(thresholds(everyone), headers=Threshold._fields))
    print(*(loss for results in everyone for loss in losses(results)), sep="\n")


if __name__ == "__main__":
    main()
