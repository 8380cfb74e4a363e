"""``auto`` against torch's attention as a user would write it: nowhere may it be slower.

The kernels by name run beside it, so that a record also says from which length on they win.
``python -m benchmarks.thresholds`` measures this with several instruction sets, and reads it.
"""

from functools import partial

import pytest
import torch

from benchmarks.bench_bottleneck_attention import HEAD_DIM, SHORT, SLOTS, compare
from benchmarks.calls import BACKEND, DEVICE, parametrized_by_dtype, parametrized_by_mode
from mbt_fast import bottleneck_attention
from mbt_fast.dispatch import Call, select


@pytest.mark.parametrize("rows", SHORT)
@pytest.mark.parametrize("streams", [1, 2])
@parametrized_by_mode
@parametrized_by_dtype(torch.bfloat16, torch.float32, torch.float16)
def test_attention(race, threads, mode, dtype, streams, rows):
    call = Call("bottleneck_attention", DEVICE, dtype, rows, HEAD_DIM)
    by_name = partial(bottleneck_attention, n_bottlenecks=SLOTS, backend=BACKEND)
    compare(
        race,
        "auto",
        mode,
        dtype,
        rows=(rows,) * streams,
        calls=max(1, min(10, 512 // (streams * rows))),
        others={BACKEND: lambda *streams: by_name(streams)},
        scale=0.25,
        case="auto",
        taken=select(call).name,
    )
