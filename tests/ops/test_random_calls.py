"""Random calls of bottleneck attention against the reference.

Torch's float32 gradients do not keep the rule on every random call: benchmarks/tolerance.py says
why and counts it. The named cases of test_bottleneck_attention.py hold them to it.
"""

import pytest
import torch
from backends import BACKENDS, DEVICE

from mbt_fast.testing import assert_close_to_exact
from mbt_fast.testing.inputs import random_call, run_call

BEYOND = {("sdpa", torch.float32): {"dqkv"}}


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("seed", range(25))
def test_random_call(backend, dtype, seed):
    call = random_call(seed, DEVICE)
    actual = run_call(call, backend, dtype)
    eager = run_call(call, "reference", dtype)
    exact = run_call(call, "reference", torch.float64)
    for kind in actual.keys() - BEYOND.get((backend, dtype), set()):
        for triple in zip(actual[kind], eager[kind], exact[kind], strict=True):
            assert_close_to_exact(*triple, name=kind)
    assert all(grad.isfinite().all() for grad in actual["dqkv"])
