"""Logits of the modalities that an example has."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mbt_fast.ops.streams import expand


def mean_of_present(
    logits: Mapping[str, Tensor], lengths: Mapping[str, Tensor | None] | None
) -> Tensor:
    """Mean of the logits over the modalities that are present.

    Args:
        logits: ``[B, K]`` per modality.
        lengths: Per modality ``[B]``, 0 where it is absent; one without an entry, or with ``None``,
            is present for every example.

    Returns:
        ``[B, K]``; zero for an example without any modality.
    """
    given = {m: length for m, length in (lengths or {}).items() if length is not None}
    if not given:
        return torch.stack(list(logits.values())).mean(dim=0)
    present = {m: _present(value, given.get(m)) for m, value in logits.items()}
    total = torch.stack([torch.where(present[m], logits[m], 0) for m in logits]).sum(dim=0)
    count = torch.stack(list(present.values())).sum(dim=0)
    return total / count.clamp(min=1)


def _present(logits: Tensor, length: Tensor | None) -> Tensor:
    """Whether the modality is present, bool ``[B, 1]``."""
    if length is None:
        return expand(logits.new_ones(logits.shape[0], dtype=torch.bool), logits)
    return expand(length > 0, logits)
