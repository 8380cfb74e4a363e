"""The end of a layer against torch's own: residual sums and their slot mean, with a drop mask."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.baselines import share_slots
from benchmarks.calls import (
    BACKEND,
    BATCHES,
    DEVICE,
    compare,
    parametrized_by_dtype,
    parametrized_by_mode,
)
from mbt_fast.functional import residual_add

ROWS, CHANNELS, SLOTS = (1573, 405), 768, 4
# Whether branches may be dropped, how many slots are shared, tensors that are read and written.
CASES = {
    "add": (False, 0, {"forward": 3, "backward": 2}),
    "add, share slots": (False, SLOTS, {"forward": 3, "backward": 2}),
    "add with a mask, share slots": (True, SLOTS, {"forward": 3, "backward": 3}),
}


@pytest.mark.parametrize("case", CASES)
@parametrized_by_mode
@parametrized_by_dtype(torch.bfloat16, torch.float32, torch.float16)
@pytest.mark.parametrize("batch", BATCHES)
def test_residual_add(race, threads, case, mode, dtype, batch):
    masked, slots, moved = CASES[case]
    rows, channels = ((9, 5), 16) if race.tiny else (ROWS, CHANNELS)
    shapes = [(batch, n, channels) for n in rows] * 2
    inputs = [torch.randn(shape, device=DEVICE, dtype=dtype) for shape in shapes]
    keep = torch.ones(batch, dtype=torch.bool, device=DEVICE) if masked else None

    def ours(*tensors: Tensor) -> Any:
        options: dict[str, Any] = {"n_bottlenecks": slots, "backend": BACKEND}
        return residual_add(tensors[:2], tensors[2:], keep=[keep, keep], **options)

    def stock(*tensors: Tensor) -> Any:
        branches = list(tensors[2:])
        if keep is not None:
            branches = [branch * keep[:, None, None].to(branch.dtype) for branch in branches]
        sums = [x + branch for x, branch in zip(tensors[:2], branches, strict=True)]
        share_slots(sums, slots)
        return sums

    facts = {"op": "residual_add", "case": case}
    compare(race, ours, stock, inputs, mode, rows=rows, moved=moved[mode], **facts)
