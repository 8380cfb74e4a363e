"""LayerNorm of two streams against torch's own: alone, after a residual sum, after a slot mean."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from benchmarks.baselines import share_slots
from benchmarks.calls import (
    BACKEND,
    BATCHES,
    DEVICE,
    compare,
    parametrized_by_dtype,
    parametrized_by_mode,
)
from mbt_fast.functional import add_layer_norm

ROWS, CHANNELS, SLOTS, EPS = (1573, 405), 768, 4, 1e-6
# Whether something is added, how many slots are shared, and the tensors that are read and written.
CASES = {
    "norm": (False, 0, {"forward": 2, "backward": 3}),
    "add, norm": (True, 0, {"forward": 4, "backward": 4}),
    "add, share slots, norm": (True, SLOTS, {"forward": 4, "backward": 4}),
}


@pytest.mark.parametrize("case", CASES)
@parametrized_by_mode
@parametrized_by_dtype()
@pytest.mark.parametrize("batch", BATCHES)
def test_add_layer_norm(race, threads, case, mode, dtype, batch):
    adds, slots, moved = CASES[case]
    rows, channels = ((9, 5), 16) if race.tiny else (ROWS, CHANNELS)
    tokens = [(batch, n, channels) for n in rows]
    shapes = [*tokens, *(tokens if adds else []), *[(channels,)] * 4]
    inputs = [torch.randn(shape, device=DEVICE, dtype=dtype) for shape in shapes]

    def parts(tensors: tuple[Tensor, ...]) -> tuple[Any, Any, Any, Any]:
        """Streams, branches, weights, biases."""
        *some, weights, biases = (list(tensors[i : i + 2]) for i in range(0, len(tensors), 2))
        return some[0], some[1] if adds else [None, None], weights, biases

    def ours(*tensors: Tensor) -> Any:
        options: dict[str, Any] = {"eps": EPS, "n_bottlenecks": slots, "backend": BACKEND}
        sums, normed = add_layer_norm(*parts(tensors), **options)
        return [*sums, *normed] if adds else normed

    def stock(*tensors: Tensor) -> Any:
        streams, branches, weights, biases = parts(tensors)
        if adds:
            streams = [x + branch for x, branch in zip(streams, branches, strict=True)]
        share_slots(streams, slots)
        each = zip(streams, weights, biases, strict=True)
        normed = [layer_norm(x, [channels], weight, bias, EPS) for x, weight, bias in each]
        return [*streams, *normed] if adds else normed

    facts = {"op": "add_layer_norm", "case": case}
    compare(race, ours, stock, inputs, mode, rows=rows, moved=moved[mode], **facts)
