"""The CPU kernels against torch's attention: ``python -m benchmarks.cpu_attention --out FILE``.

Variants of one case are interleaved, every round in another order; ratios hold on a noisy machine,
times do not. ``sdpa`` reads the same strided views; ``sdpa, contiguous`` gets copies that are not
counted. Each ratio is that of the medians.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import mbt_fast
from benchmarks.environment import stamp
from mbt_fast import native
from mbt_fast.testing.timing import interleaved_times

HEADS, HEAD_DIM = 12, 64
MBT = (1573, 405)
CPU = torch.device("cpu")
Run = Callable[[], object]


class Case(NamedTuple):
    """One problem; ``std`` is the standard deviation of what goes in."""

    rows: tuple[int, ...]
    batch: int
    dtype: torch.dtype
    threads: int = 2
    std: float = 1.0

    def flops(self, products: int) -> int:
        """2 per multiply-add; 2 products forward, 5 backward."""
        pairs = sum(rows * rows for rows in self.rows)
        return 2 * products * self.batch * HEADS * pairs * HEAD_DIM


def cases(short: bool) -> list[Case]:
    """MBT-B's two streams; or streams that are too short for anyone to win much."""
    dtypes = (torch.bfloat16, torch.float32)
    if short:
        rows = (1, 4, 8, 16, 24, 32, 48, 64, 128, 256)
        return [Case((s,) * m, b, t) for t in dtypes for m in (1, 2) for b in (1, 8) for s in rows]
    mbt = [Case(MBT, b, t, n) for t in dtypes for b in (1, 4) for n in (2, 1)]
    return [*mbt, *(Case(MBT, 1, t, std=8.0) for t in dtypes)]


def main() -> None:
    """Measure, print a line per case, record if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the records as JSON")
    parser.add_argument("--short", action="store_true", help="very short streams instead")
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    records = []
    for case in cases(args.short):
        records.append(measure(case, args.rounds))
        print(line(records[-1]), flush=True)
    if args.out:
        document = {
            "environment": stamp(),
            "command": "python -m benchmarks.cpu_attention" + (" --short" if args.short else ""),
            "instruction_set": native.instruction_set(),
            "ceilings_gflops": ceilings(),
            "records": records,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1) + "\n")


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Milliseconds and ratios of one case."""
    torch.set_num_threads(case.threads)
    calls = max(1, min(20, int(2e9 / max(case.flops(7), 1))))  # of a variant to one reading
    variants = {
        f"{backend} {direction}": repeat(run, calls)
        for backend, attend in attentions(case).items()
        for direction, run in zip(("forward", "backward"), attend, strict=True)
    }
    for run in variants.values():
        run()
    times = interleaved_times(variants, CPU, seconds=1e9, max_rounds=rounds).seconds
    ms = {name: 1e3 * statistics.median(seconds) / calls for name, seconds in times.items()}
    return {
        "rows": case.rows,
        "batch": case.batch,
        "dtype": str(case.dtype).removeprefix("torch."),
        "threads": case.threads,
        "std": case.std,
        "rounds": rounds,
        "ms_median": ms,
        "gflops": {
            direction: case.flops(products) / ms[f"cpu {direction}"] / 1e6
            for direction, products in (("forward", 2), ("backward", 5))
        },
        "speedup": {
            f"{peer} {direction}": ms[f"{peer} {direction}"] / ms[f"cpu {direction}"]
            for peer in ("sdpa", "sdpa, contiguous")
            for direction in ("forward", "backward")
        },
    }


def attentions(case: Case) -> dict[str, tuple[Run, Run]]:
    """Forward and backward of each variant."""
    packed = [
        case.std * torch.randn(case.batch, rows, 3, HEADS, HEAD_DIM, dtype=case.dtype)
        for rows in case.rows
    ]
    split = [[part.transpose(1, 2).contiguous() for part in stream.unbind(2)] for stream in packed]

    def op(backend: str) -> Callable[[list[Tensor]], list[Tensor]]:
        return lambda streams: mbt_fast.bottleneck_attention(streams, 0, backend=backend)

    def stock(leaves: list[Tensor]) -> list[Tensor]:
        triples = zip(leaves[::3], leaves[1::3], leaves[2::3], strict=True)
        return [scaled_dot_product_attention(q, k, v) for q, k, v in triples]

    return {
        "cpu": both_ways(op("cpu"), packed),
        "sdpa": both_ways(op("sdpa"), packed),
        "sdpa, contiguous": both_ways(stock, [part for parts in split for part in parts]),
    }


def both_ways(
    attend: Callable[[list[Tensor]], list[Tensor]], inputs: list[Tensor]
) -> tuple[Run, Run]:
    """A forward without gradients, and a backward alone."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    outs = attend(leaves)
    grads = [torch.randn_like(out) for out in outs]

    def forward() -> object:
        with torch.no_grad():
            return attend(inputs)

    return forward, lambda: torch.autograd.grad(outs, leaves, grads, retain_graph=True)


def repeat(run: Run, calls: int) -> Run:
    """Several calls as one."""

    def several() -> None:
        for _ in range(calls):
            run()

    return several


def ceilings() -> dict[str, float]:
    """GF/s of torch's own square matrix product, 2 threads."""
    torch.set_num_threads(2)
    rates = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(2048, 2048).to(dtype)
        multiply = {"matmul": partial(torch.matmul, a, a)}
        times = interleaved_times(multiply, CPU, seconds=1e9, max_rounds=11)
        seconds = statistics.median(times.seconds["matmul"])
        rates[str(dtype).removeprefix("torch.")] = 2 * 2048**3 / seconds / 1e9
    return rates


def line(record: dict[str, Any]) -> str:
    """One case as text."""
    speedup = "  ".join(f"{name} {ratio:.2f}x" for name, ratio in record["speedup"].items())
    head = f"{record['rows']} B={record['batch']} {record['dtype']} {record['threads']} threads"
    return f"{head} std {record['std']:g}: {speedup}"


if __name__ == "__main__":
    main()
