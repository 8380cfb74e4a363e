"""GELU of the MLP's hidden rows against torch's own, forward and backward."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from benchmarks.calls import (
    BACKEND,
    BATCHES,
    DEVICE,
    ON_GPU,
    compare,
    parametrized_by_dtype,
    parametrized_by_mode,
)
from mbt_fast.functional import bias_gelu

ROWS, HIDDEN = 1978, 3072  # of MBT-B: both streams with their slots
MOVED = {"forward": 2, "backward": 3}  # tensors that are read and written
FORMS = {"tanh": ("tanh", False), "tanh, bias": ("tanh", True), "erf": ("none", False)}


@pytest.mark.parametrize("form", list(FORMS)[:2] if ON_GPU else FORMS)
@parametrized_by_mode
@parametrized_by_dtype(torch.bfloat16, torch.float32, torch.float16)
@pytest.mark.parametrize("batch", BATCHES)
def test_bias_gelu(race, threads, form, mode, dtype, batch):
    approximate, has_bias = FORMS[form]
    rows, hidden = (9, 24) if race.tiny else (ROWS, HIDDEN)
    shapes = [(batch, rows, hidden), *([(hidden,)] if has_bias else [])]
    inputs = [torch.randn(shape, device=DEVICE, dtype=dtype) for shape in shapes]

    def ours(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return bias_gelu(x, bias, approximate=approximate, backend=BACKEND)

    def stock(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return gelu(x if bias is None else x + bias, approximate=approximate)

    facts = {"op": "bias_gelu", "case": form, "approximate": approximate}
    compare(race, ours, stock, inputs, mode, rows=[rows], moved=MOVED[mode], **facts)
