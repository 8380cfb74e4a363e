"""The layer around attention against torch's own functions, forward and backward, on the CPU.

    python -m benchmarks.layer_ops --out layer_ops.json      about five minutes
    python -m benchmarks.layer_ops --smoke                   tiny shapes

The shapes are those of MBT-B on one clip of eight seconds: 1573 and 405 rows, 768 channels, 3072 in
the MLP. Variants of a case are interleaved, call by call. Both sides return the same results, with
the host's cost of a call, without autograd's.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from benchmarks.environment import stamp
from mbt_fast import functional, native, ops
from mbt_fast.testing import interleaved_times

SLOTS, EPS = 4, 1e-6
Pair = dict[str, Callable[[], object]]
aten = torch.ops.aten


def main() -> None:
    """Time, print a table, write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the records as JSON")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each case")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, two rounds")
    args = parser.parse_args()
    seconds = 0.0 if args.smoke else args.seconds
    rows, channels, hidden = ((9, 5), 16, 24) if args.smoke else ((1573, 405), 768, 3072)
    records = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            pairs = {**gelu_pairs(sum(rows), hidden, dtype), **norm_pairs(rows, channels, dtype)}
            for name, pair in pairs.items():
                records.append({"case": name, "dtype": str(dtype), "threads": threads})
                records[-1].update(measure(pair, seconds))
                print(line(records[-1]), flush=True)
    if args.out:
        isa = native.instruction_set()
        document = {"environment": stamp(), "instruction_set": isa, "records": records}
        args.out.write_text(json.dumps(document, indent=1) + "\n")


def gelu_pairs(rows: int, channels: int, dtype: torch.dtype) -> dict[str, Pair]:
    """GELU of ``[rows, channels]``, both approximations, with and without bias."""
    x, dout = (torch.randn(rows, channels).to(dtype) for _ in range(2))
    bias = torch.randn(channels).to(dtype)
    pairs: dict[str, Pair] = {}
    for approximate in ("tanh", "none"):
        for name, added in {"": None, "with bias ": bias}.items():
            pairs[f"gelu {approximate} {name}forward"] = _gelu_forward(x, added, approximate)
            pairs[f"gelu {approximate} {name}backward"] = _gelu_backward(
                dout, x, added, approximate
            )
    return pairs


def _gelu_forward(x: Tensor, bias: Tensor | None, approximate: str) -> Pair:
    def stock() -> object:
        return gelu(x if bias is None else x + bias, approximate=approximate)

    def kernel() -> object:
        return functional.bias_gelu(x, bias, approximate=approximate, backend="cpu")

    return {"torch": stock, "cpu": kernel}


def _gelu_backward(dout: Tensor, x: Tensor, bias: Tensor | None, approximate: str) -> Pair:
    def stock() -> object:
        if bias is None:
            return aten.gelu_backward(dout, x, approximate=approximate)
        dx = aten.gelu_backward(dout, x + bias, approximate=approximate)  # like ours: keeps x only
        return dx, dx.sum(0)

    def kernel() -> object:
        return ops.bias_gelu_bwd(dout, x, bias, approximate, "cpu")

    return {"torch": stock, "cpu": kernel}


def norm_pairs(rows: tuple[int, ...], channels: int, dtype: torch.dtype) -> dict[str, Pair]:
    """LayerNorm of two streams: alone, after a residual sum, and after a slot mean as well."""

    def tokens() -> list[Tensor]:
        return [torch.randn(1, count, channels).to(dtype) for count in rows]

    streams, branches, dsums, dnormed = tokens(), tokens(), tokens(), tokens()
    weights, biases = ([torch.randn(channels).to(dtype) for _ in rows] for _ in range(2))
    none: list[Any] = [None] * len(rows)
    shape = [channels]
    stats = ops.add_layer_norm_fwd(streams, none, weights, biases, none, 0, EPS, "cpu")[
        -len(rows) :
    ]
    each = zip(streams, weights, biases, strict=True)
    torch_stats = [torch.native_layer_norm(x, shape, w, b, EPS) for x, w, b in each]

    def forward(added: list[Any], slots: int) -> Pair:
        def stock() -> object:
            pairs = zip(streams, added, strict=True)
            sums = [stream if branch is None else stream + branch for stream, branch in pairs]
            functional.share_slots_(sums, slots)
            each = zip(sums, weights, biases, strict=True)
            return sums, [layer_norm(total, shape, w, b, EPS) for total, w, b in each]

        return {
            "torch": stock,
            "cpu": lambda: functional.add_layer_norm(
                streams, added, weights, biases, eps=EPS, n_bottlenecks=slots, backend="cpu"
            ),
        }

    def backward(dsums: list[Any]) -> Pair:
        def stock() -> object:
            results = []
            each = zip(dsums, dnormed, streams, torch_stats, weights, biases, strict=True)
            for dsum, dout, total, (_, mean, rstd), w, b in each:
                grads = aten.native_layer_norm_backward(
                    dout, total, shape, mean, rstd, w, b, [True] * 3
                )
                results.append((grads[0] if dsum is None else grads[0] + dsum, *grads[1:]))
            return results

        return {
            "torch": stock,
            "cpu": lambda: ops.add_layer_norm_bwd(
                dsums, dnormed, streams, stats, weights, none, 0, "cpu"
            ),
        }

    return {
        "layer_norm forward": forward(none, 0),
        "add, layer_norm forward": forward(branches, 0),
        "add, share slots, layer_norm forward": forward(branches, SLOTS),
        "layer_norm backward": backward(none),
        "add, layer_norm backward": backward(dsums),
    }


def measure(pair: Pair, seconds: float) -> dict[str, Any]:
    """Medians in microseconds, and how many times faster than torch."""
    with torch.no_grad():
        for run in pair.values():
            run()
        times = interleaved_times(pair, torch.device("cpu"), seconds=seconds, max_rounds=200)
    medians = {name: statistics.median(s) * 1e6 for name, s in times.seconds.items()}
    lowest = {name: min(s) * 1e6 for name, s in times.seconds.items()}
    return {
        "rounds": len(times.seconds["cpu"]),
        "median_us": medians,
        "min_us": lowest,
        "speedup": medians["torch"] / medians["cpu"],
        "speedup_of_minima": lowest["torch"] / lowest["cpu"],
    }


def line(record: dict[str, Any]) -> str:
    """One record as text."""
    us = record["median_us"]
    return (
        f"{record['case']:<38} {record['dtype']:<15} {record['threads']} threads  "
        f"torch {us['torch']:8.0f} us  cpu {us['cpu']:8.0f} us  x {record['speedup']:5.2f}  "
        f"(minima x {record['speedup_of_minima']:5.2f})"
    )


if __name__ == "__main__":
    main()
