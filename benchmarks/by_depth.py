"""What the depth of the stack does to a call: ``python -m benchmarks.by_depth``.

The backward of the exact GELU in float32, over the MLP of MBT-B, torch's and ours, on one thread:
milliseconds by depth, in interleaved rounds over the depths of ``benchmarks.depth``.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.allocator import keep_freed_memory
from benchmarks.case import Run
from benchmarks.depth import LEVELS, at_depth
from benchmarks.environment import stamp
from benchmarks.record import significant
from mbt_fast import ops
from mbt_fast.testing import interleaved_times

SHAPE = (1, 1978, 3072)  # the rows of both streams, channels of the MLP
CPU = torch.device("cpu")


def main() -> None:
    """Measure, print, and record if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    result = {name: milliseconds(run, args.seconds / 2) for name, run in runs().items()}
    print(json.dumps(result))
    if args.out:
        arguments = {"seconds": args.seconds, "threads": 1, "shape": SHAPE}
        document = {"environment": stamp(), "arguments": arguments, "ms_by_depth": result}
        args.out.write_text(json.dumps(document, indent=1) + "\n")


def runs(shape: tuple[int, ...] = SHAPE) -> dict[str, Run]:
    """The same backward, torch's and ours."""
    x, dout = torch.randn(shape), torch.randn(shape)
    return {
        "torch": lambda: torch.ops.aten.gelu_backward(dout, x),
        "ours, cpu": lambda: ops.bias_gelu_bwd(dout, x, None, "none", "cpu")[0],
    }


def milliseconds(run: Run, seconds: float) -> list[float]:
    """Of a call at each depth, the median of the rounds."""
    at = {str(depth): partial(at_depth, depth, run) for depth in range(LEVELS)}
    for call in at.values():
        call()
    times = interleaved_times(at, CPU, seconds=seconds, max_rounds=1000).seconds
    return [significant(1e3 * median(values)) for values in times.values()]


if __name__ == "__main__":
    main()
