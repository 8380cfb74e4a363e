"""Mixup of clips with several modalities, some of which may be absent.

Source: Zhang et al., "mixup" (2018); the official code's ``mixup_modalities`` for one share of a
whole batch, for the partner, and for shares and labels of each modality by itself.
"""

from collections.abc import Mapping
from random import Random

import torch
from torch import Generator, Tensor

Tensors = dict[str, Tensor]


def mixup(
    inputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    lengths: Mapping[str, Tensor] | None,
    alpha: float,
    generator: Generator,
    *,
    modality_mixup: bool = False,
    joint: bool = False,
) -> tuple[Tensors, Tensors, Tensors | None]:
    """Mix inputs and labels with those of the reversed batch.

    Example ``i`` becomes ``share * x[i] + (1 - share) * x[-1 - i]``.

    The share is drawn from Beta(alpha, alpha), once for the batch, or with ``modality_mixup`` once
    for each modality. A modality is mixed where both examples have it. Where one of them lacks it,
    the other keeps its own, unmixed and with its own labels: silence is no sound, and nothing is
    thrown away.

    Args:
        inputs: Per modality float ``[B, ...]``.
        targets: Per modality float ``[B, K]``.
        lengths: Per modality ``[B]``, valid own tokens; ``None`` where all are.
        alpha: Both parameters of the Beta distribution, above 0.
        generator: Of the shares.
        modality_mixup: Draw a share for each modality.
        joint: The model has one output for all modalities, so an example has one label: mix it
            whole, where both have the same modalities, or not at all.

    Returns:
        Inputs, targets and lengths of the mixed examples: as many tokens are valid as in the longer
        of the two.
    """
    draw = Random(int(torch.randint(1 << 62, (), generator=generator))).betavariate
    share = draw(alpha, alpha)
    mixes = _both(lengths or {}, joint)
    mixed: Tensors = {}
    labels: Tensors = {}
    valid: Tensors = {}
    for modality, x in inputs.items():
        share = draw(alpha, alpha) if modality_mixup else share
        weight = x.new_full((len(x),), share)
        if lengths is not None:
            length = lengths[modality]
            weight = weight.where(mixes[modality], 1)
            valid[modality] = length.maximum(length.flip(0)).where(mixes[modality], length)
        mixed[modality] = _mix(x, weight)
        labels[modality] = _mix(targets[modality], weight)
    return mixed, labels, None if lengths is None else valid


def _both(lengths: Mapping[str, Tensor], joint: bool) -> Tensors:
    """Where a modality is mixed, bool ``[B]`` for each."""
    here = {modality: length > 0 for modality, length in lengths.items()}
    if not joint:
        return {modality: given & given.flip(0) for modality, given in here.items()}
    alike = [given == given.flip(0) for given in here.values()]
    return {modality: torch.stack(alike).all(0) for modality in here}


def _mix(x: Tensor, weight: Tensor) -> Tensor:
    weight = weight.view(-1, *[1] * (x.ndim - 1)).to(x)
    return weight * x + (1 - weight) * x.flip(0)
