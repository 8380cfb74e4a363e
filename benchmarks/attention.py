"""Bottleneck attention against what a user could write instead, forward and backward.

    python -m benchmarks.attention --out attention.json      all shapes, on a GPU
    python -m benchmarks.attention --smoke                   one tiny shape, also on a CPU

Variants of one shape are interleaved. Useful TFLOP/s count the products that the op asks for: 2
forward and 5 backward, padding and recomputation beyond that not counted. A peer that cannot run is
listed with its reason.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.environment import stamp

HEADS, HEAD_DIM, SLOTS = 12, 64, 4
LENGTHS: dict[str, tuple[int, ...]] = {
    "mbt-8s": (1573, 405),
    "mbt-4s-tubelet2": (789, 205),
    "mbt-32frames": (3142, 406),
    "three-equal": (1024, 1024, 1024),
}
BATCHES = (1, 8, 64)
PRODUCTS = {"forward": 2, "backward": 5}
L2_BYTES = 2**28  # inputs rotate through more than this, so that none is found in a cache


class Shape(NamedTuple):
    """One problem."""

    name: str
    batch: int
    rows: tuple[int, ...]
    dtype: torch.dtype

    def flops(self, direction: str) -> int:
        """Useful FLOPs."""
        pairs = sum(rows * rows for rows in self.rows)
        return 2 * PRODUCTS[direction] * self.batch * HEADS * pairs * HEAD_DIM


def shapes(smoke: bool) -> list[Shape]:
    """The problems, small batches first, so that a cut run has some of everything."""
    if smoke:
        return [Shape("smoke", 1, (37, 21), torch.float32)]
    dtypes = (torch.bfloat16, torch.float16)
    return [
        Shape(name, batch, rows, dtype)
        for dtype in dtypes
        for batch in BATCHES
        for name, rows in LENGTHS.items()
        if dtype == torch.bfloat16 or name == "mbt-8s"
    ]


def main() -> None:
    """Run, print a table, write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the records as JSON")
    parser.add_argument("--seconds", type=float, default=240.0, help="start no shape after this")
    parser.add_argument("--smoke", action="store_true", help="one tiny shape")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start, records = time.perf_counter(), []
    for shape in shapes(args.smoke):
        if time.perf_counter() - start > args.seconds:
            records.append({"shape": shape.name, "batch": shape.batch, "error": "out of time"})
            continue
        records += measure(shape, device)
        if args.out:  # after every shape: a run that is cut keeps what it has
            document = {"environment": stamp(), "records": records}
            args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(format_records(records))


def measure(shape: Shape, device: torch.device) -> list[dict[str, Any]]:
    """All peers on one shape, forward and backward."""
    copies = _copies(shape, device)
    records = []
    for direction in PRODUCTS:
        calls: dict[str, Callable[[int], object]] = {}
        for name, peer in peers.PEERS.items():
            try:
                calls[name] = _call(peer, copies, direction)
                calls[name](0)
            except Exception as error:  # a peer may fail in ways of its own; the others go on
                calls.pop(name, None)
                records.append(_record(shape, name, direction, error=_one_line(error)))
        for name, seconds in _interleave(calls, len(copies), device).items():
            records.append(_record(shape, name, direction, seconds=seconds))
    return records


def _copies(shape: Shape, device: torch.device) -> list[list[Tensor]]:
    """Enough sets of random packed streams that no set is left in the L2 from its last use."""
    size = 3 * shape.batch * sum(shape.rows) * HEADS * HEAD_DIM * shape.dtype.itemsize
    count = max(1, min(16, L2_BYTES // size)) if device.type == "cuda" else 1
    return [
        [
            torch.randn(shape.batch, rows, 3, HEADS, HEAD_DIM, device=device, dtype=shape.dtype)
            for rows in shape.rows
        ]
        for _ in range(count)
    ]


def _call(
    peer: Callable[[Sequence[Tensor], int], Sequence[Tensor]],
    copies: list[list[Tensor]],
    direction: str,
) -> Callable[[int], object]:
    if direction == "forward":

        def forward(index: int) -> object:
            with torch.no_grad():
                return peer(copies[index], SLOTS)

        return forward
    graphs = []
    for streams in copies:
        leaves = [stream.detach().requires_grad_() for stream in streams]
        outs = list(peer(leaves, SLOTS))
        graphs.append((leaves, outs, [torch.randn_like(out) for out in outs]))

    def backward(index: int) -> object:
        leaves, outs, grads = graphs[index]
        return torch.autograd.grad(outs, leaves, grads, retain_graph=True)

    return backward


def _interleave(
    calls: dict[str, Callable[[int], object]], copies: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds per call, in rounds; on a GPU between events, several calls to one reading."""
    inner = 10 if device.type == "cuda" else 1
    rounds = 15 if device.type == "cuda" else 3
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_seconds(call, inner, copies, device))
    return times


def _seconds(call: Callable[[int], object], inner: int, copies: int, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        for index in range(inner):
            call(index % copies)
        return (time.perf_counter() - start) / inner
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for index in range(inner):
        call(index % copies)
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / inner


def _record(
    shape: Shape,
    peer: str,
    direction: str,
    *,
    seconds: list[float] | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "shape": shape.name,
        "batch": shape.batch,
        "rows": shape.rows,
        "dtype": str(shape.dtype).removeprefix("torch."),
        "direction": direction,
        "peer": peer,
        "error": error,
    }
    if seconds:
        low, _, _, high = statistics.quantiles(seconds, n=5, method="inclusive")
        median = statistics.median(seconds)
        record |= {"ms_median": 1e3 * median, "ms_p20": 1e3 * low, "ms_p80": 1e3 * high}
        record["tflops"] = shape.flops(direction) / median / 1e12
    return record


def format_records(records: list[dict[str, Any]]) -> str:
    """One line per record, as text."""
    lines = []
    for r in records:
        head = f"{r['shape']:<16} B={r['batch']:<3} {r.get('dtype', ''):<9}"
        head += f"{r.get('direction', ''):<9} {r.get('peer', ''):<22}"
        if r.get("error"):
            lines.append(f"{head} {r['error'][:80]}")
        else:
            lines.append(f"{head} {r['ms_median']:9.3f} ms {r['tflops']:8.2f} TFLOP/s")
    return "\n".join(lines)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


if __name__ == "__main__":
    main()
