"""Attention of all streams of a layer, and nothing around it.

FLOPs are those that the op asks for: 2 products forward and 5 backward, no padding, nothing that a
backward computes again.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from benchmarks.baselines import BASELINES_ON_CPU, BASELINES_ON_GPU, Attend, sdpa
from benchmarks.calls import (
    DEVICE,
    MODES,
    ON_GPU,
    doubled,
    each,
    parametrized_by_dtype,
    parametrized_by_mode,
)
from mbt_fast import bottleneck_attention
from mbt_fast.profiling.machine import dtype_name

HEADS, HEAD_DIM, SLOTS = 12, 64, 4
MBT_B = (1573, 405)  # 8 frames and 8 s of sound, with four slots
PRODUCTS = {"forward": 2, "backward": 5}
L2_BYTES = 2**28  # inputs on a GPU rotate through more than this, so that none is in a cache
SHORT = (8, 16, 32, 48, 64, 128, 256, 512)

backends = pytest.mark.parametrize("backend", ["cuda", "triton"] if ON_GPU else ["cpu"])


def compare(
    race: Any,
    backend: str,
    mode: str,
    dtype: torch.dtype,
    *,
    rows: tuple[int, ...] = MBT_B,
    batch: int = 1,
    std: float = 1.0,
    calls: int = 1,
    others: Mapping[str, Attend] | None = None,
    **facts: Any,
) -> None:
    """Race a backend against torch's attention per stream, and others."""
    rows = tuple(5 + 3 * i for i in range(len(rows))) if race.tiny else rows
    size = 3 * batch * sum(rows) * HEADS * HEAD_DIM * dtype.itemsize
    copies = max(1, min(16, L2_BYTES // size)) if ON_GPU and not race.tiny else 1
    calls = 1 if race.tiny else calls
    sets = [
        [std * torch.randn(batch, n, 3, HEADS, HEAD_DIM, device=DEVICE, dtype=dtype) for n in rows]
        for _ in range(copies)
    ]

    def ours(name: str) -> Attend:
        return lambda *streams: bottleneck_attention(streams, SLOTS, backend=name)

    def call(attend: Attend, exactly: bool = False) -> Any:
        inputs = [doubled(streams) for streams in sets] if exactly else sets
        return each([MODES[mode](attend, streams, dtype) for streams in inputs] * calls)

    race(
        call(ours(backend)),
        {"sdpa": call(sdpa), **{name: call(attend) for name, attend in (others or {}).items()}},
        exact=call(ours("reference"), exactly=True),
        calls=copies * calls,
        flops=2 * PRODUCTS[mode] * batch * HEADS * sum(n * n for n in rows) * HEAD_DIM,
        graph=mode == "forward" and batch == 1,
        op="bottleneck_attention",
        backend=backend,
        mode=mode,
        dtype=dtype_name(dtype),
        shape={"batch": batch, "rows": rows, "heads": HEADS, "head_dim": HEAD_DIM, "std": std},
        **facts,
    )


@backends
@parametrized_by_mode
@parametrized_by_dtype()
def test_mbt_b(race, threads, backend, mode, dtype):
    compare(race, backend, mode, dtype, case="MBT-B")


@backends
@parametrized_by_mode
@parametrized_by_dtype()
@pytest.mark.parametrize("batch", [8, 64] if ON_GPU else [4])
def test_batches(race, backend, mode, dtype, batch):
    compare(race, backend, mode, dtype, batch=batch, case="MBT-B")


@backends
@parametrized_by_mode
@parametrized_by_dtype()
def test_other_baselines(race, backend, mode, dtype):
    others = BASELINES_ON_GPU if ON_GPU else dict(BASELINES_ON_CPU)
    if race.tiny:
        others = {name: attend for name, attend in others.items() if name != "flex_attention"}
    compare(race, backend, mode, dtype, others=others, scale=2, case="MBT-B, other baselines")


@backends
@parametrized_by_dtype()
def test_large_logits(race, backend, dtype):
    compare(race, backend, "forward", dtype, std=8.0, case="MBT-B, large logits")


@pytest.mark.parametrize("rows", SHORT)
@pytest.mark.parametrize("batch", [1, 8])
@backends
@parametrized_by_mode
@parametrized_by_dtype()
def test_short_streams(race, backend, mode, dtype, batch, rows):
    """From which length on ours is faster: ``auto`` is held to these records."""
    calls = max(1, min(10, 2048 // (batch * rows)))
    options = {"rows": (rows, rows), "batch": batch, "calls": calls, "scale": 0.2}
    compare(race, backend, mode, dtype, **options, case="short streams")
