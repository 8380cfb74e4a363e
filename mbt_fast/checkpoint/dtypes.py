"""The one floating dtype that all weights of a model have."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from mbt_fast.checkpoint.shapes import shortened
from mbt_fast.errors import CheckpointError

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_dtypes(tensors: Mapping[str, Tensor], what: str) -> None:
    """Check that the tensors have one dtype among float16, bfloat16, float32 and float64.

    Weights of several dtypes are refused, not cast: which one was meant is the caller's to say.

    Args:
        tensors: Weights by name.
        what: Opens the message, e.g. ``"the weights are not a model's"``.

    Raises:
        CheckpointError: Names the tensors that are not floating point, or that differ from most.
    """
    kinds = {name: _name(tensor.dtype) for name, tensor in tensors.items()}
    wrong = [f"{n} ({kinds[n]})" for n, t in tensors.items() if t.dtype not in _FLOATING]
    if wrong:
        allowed = ", ".join(map(_name, _FLOATING))
        raise CheckpointError(f"{what}: dtypes must be one of {allowed}, got {shortened(wrong)}")
    counts = Counter(kinds.values())
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = [f"{name} ({kind})" for name, kind in kinds.items() if kind != usual]
        raise CheckpointError(f"{what}: all must be {usual} like most, got {shortened(odd)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
