"""How often random calls exceed the tolerance rule: ``python -m benchmarks.tolerance BACKEND``.

A fused backward takes delta from the rounded output, where eager takes it from the very products it
is subtracted from. Where softmax is saturated eager is then almost exact, and the rule, which goes
by eager's error, asks for more than such a backward holds in float32. This counts it.
"""

import argparse
import json

import torch

from mbt_fast.testing import assert_close_to_exact
from mbt_fast.testing.inputs import random_call, run_call


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("backend")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--calls", type=int, default=100)
    args = parser.parse_args()
    print(json.dumps(count(args.backend, getattr(torch, args.dtype), args.calls)))


def count(backend: str, dtype: torch.dtype, calls: int) -> dict[str, int]:
    """Calls of which an output, a log-sum-exp or a gradient exceeds the rule."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exceeded = {"calls": calls, "out": 0, "lse": 0, "dqkv": 0}
    for seed in range(calls):
        call = random_call(seed, device)
        actual = run_call(call, backend, dtype)
        eager = run_call(call, "reference", dtype)
        exact = run_call(call, "reference", torch.float64)
        for kind, results in actual.items():
            try:
                for triple in zip(results, eager[kind], exact[kind], strict=True):
                    assert_close_to_exact(*triple)
            except AssertionError:
                exceeded[kind] += 1
    return exceeded


if __name__ == "__main__":
    main()
