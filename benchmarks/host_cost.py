"""What a call of the op costs the host beyond its launcher: ``python -m benchmarks.host_cost``.

The launcher is replaced by one that only hands out ready tensors, so that nothing but checks,
dispatch and the operator's boundary is timed; no GPU is needed. Two streams, no gradient.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

import mbt_fast
from benchmarks.environment import stamp
from mbt_fast import dispatch
from mbt_fast.ops import bottleneck_attention as op

CALLS, ROUNDS = 2000, 15
LIMIT_US = 25.0


def main() -> None:
    """Time, print, and record if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    result = measure()
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"environment": stamp(), **result}, indent=1) + "\n")


def measure() -> dict[str, float]:
    """Microseconds of a call, of its launcher, and what lies between."""
    streams = [torch.randn(1, rows, 3, 2, 64) for rows in (37, 21)]
    outs = [stream[:, :, 0].contiguous() for stream in streams]
    lses = [torch.zeros(1, 2, stream.shape[1]) for stream in streams]
    kept = [torch.zeros(2, 1, 2, 37), torch.zeros(2, 1, 2, 21), torch.zeros(0)]

    def launcher(*call: object) -> tuple[list[torch.Tensor], ...]:
        return list(outs), list(lses), list(kept)

    rows = (dispatch.Backend("triton", dispatch.EVERY),)
    original = dispatch.BACKENDS, op.import_launchers
    dispatch.BACKENDS = rows  # type: ignore[assignment]
    op.import_launchers = lambda backend: SimpleNamespace(bottleneck_attention_fwd=launcher)
    try:
        with torch.no_grad():
            whole, alone = _interleaved(
                lambda: mbt_fast.bottleneck_attention(streams, 4, backend="triton"),
                lambda: launcher(streams, [None, None], 4, False, 0.125),
            )
    finally:
        dispatch.BACKENDS, op.import_launchers = original
    return {"call_us": whole, "launcher_us": alone, "boundary_us": whole - alone}


def _interleaved(*calls: Callable[[], object]) -> list[float]:
    """Median microseconds of each, in alternating rounds."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for seconds, call in zip(times, calls, strict=True):
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            seconds.append((time.perf_counter() - start) / CALLS * 1e6)
    return [statistics.median(seconds) for seconds in times]


if __name__ == "__main__":
    main()
