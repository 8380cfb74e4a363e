"""Random calls of bottleneck attention against the reference.

Gradients are compared in float16. In float32 no fused backward keeps the rule on every random call,
torch's least of all: benchmarks/tolerance.py says why and counts it. The named cases of
test_bottleneck_attention.py hold them to the rule in float32.
"""

import pytest
import torch
from attention_cases import BACKENDS, DEVICE

from mbt_fast.testing import assert_close_to_exact
from mbt_fast.testing.inputs import random_call, run_call

KINDS = {torch.float32: ("out", "lse"), torch.float16: ("out", "lse", "dqkv")}


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("seed", range(25))
def test_random_call(backend, dtype, seed):
    call = random_call(seed, DEVICE)
    actual = run_call(call, backend, dtype)
    eager = run_call(call, "reference", dtype)
    exact = run_call(call, "reference", torch.float64)
    for kind in KINDS[dtype]:
        for triple in zip(actual[kind], eager[kind], exact[kind], strict=True):
            assert_close_to_exact(*triple, name=kind)
    assert all(grad.isfinite().all() for grad in actual["dqkv"])
