"""The loss of a batch: one per modality, then the mean over those that an example has.

It is the official one (scenic, ``projects/mbt/model.py``): each modality's logits meet the targets
by themselves, and logits are averaged for predictions only.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from mbt_fast.data.classes import TASKS


def soft_targets(targets: Tensor, task: str, n_classes: int, n_verbs: int | None = None) -> Tensor:
    """Targets that can be mixed and smoothed, float32 ``[B, n_classes]``.

    Args:
        targets: ``"single"``: classes, integer ``[B]``. ``"multilabel"``: 1 where a class is
            present and 0 elsewhere, ``[B, n_classes]``. ``"verb_noun"``: verbs and nouns, integer
            ``[B, 2]``.
        task: One of ``TASKS``.
        n_classes: Outputs of the model: of ``"verb_noun"`` verbs and nouns together.
        n_verbs: Of ``"verb_noun"``: how many outputs are verbs; they come first.

    Raises:
        ValueError: The task is unknown, ``n_verbs`` does not fit it, or targets have another shape.
    """
    check_task(task, n_classes, n_verbs)
    shape = {"single": (), "multilabel": (n_classes,), "verb_noun": (2,)}[task]
    if targets.ndim != 1 + len(shape) or targets.shape[1:] != shape:
        expected = ", ".join(["B", *map(str, shape)])
        raise ValueError(
            f"targets must have shape [{expected}] for task {task!r}, got {list(targets.shape)}"
        )
    if task == "multilabel":
        return targets.float()
    if n_verbs is None:
        return one_hot(targets.long(), n_classes).float()
    verbs, nouns = targets.long().unbind(1)
    hot = one_hot(verbs, n_verbs), one_hot(nouns, n_classes - n_verbs)
    return torch.cat(hot, dim=1).float()


def loss(
    logits: Mapping[str, Tensor],
    targets: Tensor | Mapping[str, Tensor],
    *,
    task: str,
    smoothing: float = 0.0,
    present: Mapping[str, Tensor] | None = None,
    n_verbs: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a batch, in float32, under autocast too (float64 for such logits).

    The loss of an example is the mean over the modalities that it has, that of the batch the mean
    over all examples. One without any modality counts as zero, so the losses of the parts of a
    batch, weighted by their sizes, add up to that of the whole.

    - ``"multilabel"``: binary cross-entropy, summed over the classes.
    - ``"single"``: cross-entropy.
    - ``"verb_noun"``: the mean of the cross-entropies of verb and noun.

    Args:
        logits: ``[B, K]`` per modality, or one ``"shared"``, as ``MBT.forward_modalities`` returns.
        targets: Float ``[B, K]`` as ``soft_targets`` makes them: one for all logits, or one for
            each, as modality mixup does.
        task: One of ``TASKS``.
        smoothing: Label smoothing, ``y (1 - smoothing) + smoothing / K``, for every task, as in the
            official code. Verbs and nouns have each their own ``K``.
        present: Bool ``[B]`` per entry of ``logits``; without one it is present everywhere. Logits
            of an example that lacks the modality get no gradient, whatever they are.
        n_verbs: Of ``"verb_noun"``: how many logits are verbs; they come first.

    Returns:
        The loss; and per modality, detached, its mean over the examples that have it, NaN where
        none has.

    Raises:
        ValueError: The task is unknown, there are no logits, or shapes differ.
    """
    if not logits:
        raise ValueError("logits must hold at least one modality, got none")
    losses, masks = [], []
    for modality, given in logits.items():
        mask = given.new_ones(len(given), dtype=torch.bool)
        if present is not None and modality in present:
            mask = present[modality]
        wide = given.to(torch.promote_types(given.dtype, torch.float32))
        target = targets if isinstance(targets, Tensor) else targets[modality]
        if target.shape != given.shape:
            raise ValueError(
                f"targets must have shape {list(given.shape)} like logits[{modality!r}], "
                f"got {list(target.shape)}"
            )
        wide, target = wide.masked_fill(~mask[:, None], 0), target.to(wide)
        with torch.autocast(given.device.type, enabled=False):
            losses.append(_example_losses(wide, target, task, smoothing, n_verbs))
        masks.append(mask)
    values, mask = torch.stack(losses), torch.stack(masks)
    values = values * mask
    total = values.sum(0) / mask.sum(0).clamp(min=1)
    means = values.detach().sum(1) / mask.sum(1)
    return total.mean(), dict(zip(logits, means.unbind(), strict=True))


def check_task(task: str, n_classes: int, n_verbs: int | None) -> None:
    """Refuse an unknown task, and a number of verbs that does not fit it.

    Raises:
        ValueError: See above.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    if task != "verb_noun" and n_verbs is not None:
        raise ValueError(f"n_verbs must be None for task {task!r}, got {n_verbs}")
    if task == "verb_noun" and not 0 < (n_verbs or 0) < n_classes:
        raise ValueError(f"n_verbs must be in 1..{n_classes - 1}, got {n_verbs}")


def _example_losses(
    logits: Tensor, targets: Tensor, task: str, smoothing: float, n_verbs: int | None
) -> Tensor:
    """Loss of each example ``[B]``."""
    check_task(task, logits.shape[1], n_verbs)
    if n_verbs is not None:
        sizes = [n_verbs, logits.shape[1] - n_verbs]
        pairs = zip(logits.split(sizes, 1), targets.split(sizes, 1), strict=True)
        verb, noun = (_cross_entropy(part, target, smoothing) for part, target in pairs)
        return (verb + noun) / 2
    if task == "single":
        return _cross_entropy(logits, targets, smoothing)
    smooth = _smooth(targets, smoothing)
    return binary_cross_entropy_with_logits(logits, smooth, reduction="none").sum(1)


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return cross_entropy(logits, _smooth(targets, smoothing), reduction="none")


def _smooth(targets: Tensor, smoothing: float) -> Tensor:
    return targets * (1 - smoothing) + smoothing / targets.shape[1]
