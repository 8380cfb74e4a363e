"""How often random calls exceed the tolerance rule: ``python -m benchmarks.tolerance BACKEND``.

A fused backward takes delta from the rounded output, where eager takes it from the very products it
is subtracted from. Where softmax is saturated eager is then almost exact, and the rule, which goes
by eager's error, asks for more than such a backward holds in float32. This counts it.

A fused backward also relies on scores that come out as in the forward, to the last bit. Compiled,
each is one chain of multiply-adds along D. Triton's interpreter asks numpy, which sums in an order
that depends on the shape of a tile; with ``--chain`` it sums as the compiled kernel does.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import facts
from mbt_fast.testing import assert_close_to_exact
from mbt_fast.testing.inputs import random_call, run_call


def main() -> None:
    """Count, print, and record if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--chain", action="store_true", help="interpret products as compiled ones")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    if args.chain:
        interpret_products_as_chains()
    result = count(args.backend, getattr(torch, args.dtype), args.calls)
    print(json.dumps(result))
    if args.out:
        document = {"machine": facts(), "arguments": vars(args) | {"out": None}, **result}
        args.out.write_text(json.dumps(document, indent=1) + "\n")


def interpret_products_as_chains() -> None:
    """Sum every product of Triton's interpreter in order of its inner axis, in float32."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, total: Any, *precision: Any) -> Any:
        values = total.data
        left, right = a.data.astype(np.float64), b.data.astype(np.float64)
        for i in range(left.shape[1]):  # float64 holds the product exactly: fused multiply-adds
            values = (left[:, i, None] * right[None, i] + values).astype(np.float32)
        return TensorHandle(values, total.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot


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
