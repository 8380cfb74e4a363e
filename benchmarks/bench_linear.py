"""The Linears of MBT-B, of both streams, against torch's own and oneDNN's, forward and backward.

oneDNN is called as ``torch.compile`` calls it for inference: with the weights as they are, and with
weights that were brought into its own layout before.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.calls import (
    DEVICE,
    MODES,
    Call,
    doubled,
    each,
    parametrized_by_dtype,
    parametrized_by_mode,
)
from mbt_fast.functional import linear
from mbt_fast.profiling.machine import dtype_name

MBT_B = (1573, 405)  # rows of video and sound, with four slots
SIZES = {"qkv": (768, 2304), "proj": (768, 768), "fc1": (768, 3072), "fc2": (3072, 768)}
FLOPS = {"forward": 2, "backward": 4}  # per multiply-add; gradients of rows and of weights
SHORT = (16, 64, 256, 1024)
CALLS = 16  # in one round of a short case

Layer = tuple[Tensor, Tensor, Tensor]  # rows, weight, bias


def compare(
    race: Any,
    mode: str,
    dtype: torch.dtype,
    rows: Sequence[int],
    sizes: tuple[int, int],
    calls: int = 1,
    **facts: Any,
) -> None:
    """Race the kernels against torch, and in the forward against oneDNN."""
    if race.tiny:
        rows, sizes, calls = [5 + n for n in range(len(rows))], (20, 24), 1
    channels, outputs = sizes
    streams = [make(n, channels, outputs, dtype) for n in rows]

    def call(function: Any, given: Sequence[Layer] = streams) -> Call:
        return each([MODES[mode](function, tensors, dtype) for tensors in given] * calls)

    others = {"torch": call(functional.linear)}
    if mode == "forward" and DEVICE.type == "cpu":
        others |= {
            "oneDNN": each([onednn(*tensors) for tensors in streams] * calls),
            "oneDNN, packed": each([onednn_packed(*tensors) for tensors in streams] * calls),
        }
    race(
        call(lambda *tensors: linear(*tensors, backend="cpu")),
        others,
        exact=call(functional.linear, doubled(streams)),
        calls=calls,
        flops=FLOPS[mode] * calls * sum(rows) * channels * outputs,
        op="linear",
        backend="cpu",
        mode=mode,
        dtype=dtype_name(dtype),
        shape={"batch": 1, "rows": list(rows), "channels": channels, "outputs": outputs},
        **facts,
    )


def make(rows: int, channels: int, outputs: int, dtype: torch.dtype) -> Layer:
    """Rows, and a layer whose outputs are as large as they."""
    sizes = ((1, rows, channels), (outputs, channels), (outputs,))
    x, weight, bias = (torch.randn(size, device=DEVICE) for size in sizes)
    return x.to(dtype), (weight * channels**-0.5).to(dtype), bias.to(dtype)


def onednn(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    """Without gradients, of weights in any layout."""
    return lambda: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def onednn_packed(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    """The weights are packed in the first call."""
    packed: list[Call] = []

    def run() -> Any:
        if not packed:
            reordered = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[1])
            packed.append(onednn(x, reordered, bias))
        return packed[0]()

    return run


@pytest.mark.parametrize("case", SIZES)
@parametrized_by_mode
@parametrized_by_dtype()
def test_mbt_b(race, threads, case, mode, dtype):
    compare(race, mode, dtype, MBT_B, SIZES[case], case=case)


@pytest.mark.parametrize("rows", SHORT)
@pytest.mark.parametrize("channels", [192, 768])
@parametrized_by_mode
@parametrized_by_dtype()
def test_short(race, threads, channels, rows, mode, dtype):
    compare(race, mode, dtype, (rows,), (channels, channels), CALLS, case=f"{rows} rows")
