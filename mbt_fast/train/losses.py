"""The loss of a batch: one per modality, then the mean over those that an example has.

That is the official one (scenic, ``projects/mbt/model.py``): each modality's logits meet the
targets by themselves, and logits are averaged for predictions only. The other one, of the averaged
logits, trains what predicts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from mbt_fast.data.classes import ONE_HEAD, check_task

LOSSES = ("per_modality", "mean_logits")


def soft_targets(
    targets: Tensor, task: str, n_classes: int, heads: Sequence[int] | None = None
) -> Tensor:
    """Targets that can be mixed and smoothed, float32 ``[B, n_classes]``.

    Args:
        targets: ``"single"``: classes, integer ``[B]``. ``"multilabel"``: 1 where a class is
            present and 0 elsewhere, ``[B, n_classes]``. ``"verb_noun"``: verbs and nouns, integer
            ``[B, 2]``. ``"multitask"``: the class of each head, integer ``[B, H]``.
        task: One of ``mbt_fast.data.classes.TASKS``.
        n_classes: Outputs of the model, those of all heads together.
        heads: How many outputs each head has, for tasks with several.

    Raises:
        ValueError: The task is unknown, ``heads`` do not fit it, or targets have another shape.
    """
    sizes = check_heads(task, n_classes, heads)
    shape = target_shape(task, n_classes, heads)
    if targets.ndim != 1 + len(shape) or targets.shape[1:] != shape:
        expected = ", ".join(["B", *map(str, shape)])
        raise ValueError(
            f"targets must have shape [{expected}] for task {task!r}, got {list(targets.shape)}"
        )
    if task == "multilabel":
        return targets.float()
    columns = targets.long().view(len(targets), len(sizes)).unbind(1)
    hot = [one_hot(labels, size) for labels, size in zip(columns, sizes, strict=True)]
    return torch.cat(hot, dim=1).float()


def loss(
    logits: Mapping[str, Tensor],
    targets: Tensor | Mapping[str, Tensor],
    *,
    task: str,
    kind: str = "per_modality",
    smoothing: float = 0.0,
    present: Mapping[str, Tensor] | None = None,
    heads: Sequence[int] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a batch, in float32, under autocast too (float64 for such logits).

    The loss of an example is the mean over the modalities that it has, or with ``"mean_logits"``
    that of the mean of their logits. The loss of the batch is the mean over all examples. One
    without any modality counts as zero, so the losses of the parts of a batch, weighted by their
    sizes, add up to that of the whole.

    - ``"multilabel"``: binary cross-entropy, summed over the classes.
    - ``"single"``: cross-entropy.
    - ``"verb_noun"``, ``"multitask"``: the mean of the cross-entropies of the heads.

    Args:
        logits: ``[B, K]`` per modality, or one ``"shared"``, as ``MBT.forward_modalities`` returns.
        targets: Float ``[B, K]`` as ``soft_targets`` makes them: one for all logits, or one for
            each, as modality mixup does. ``"mean_logits"`` takes those of the first for all.
        task: One of ``mbt_fast.data.classes.TASKS``.
        kind: One of ``LOSSES``.
        smoothing: Label smoothing, ``y (1 - smoothing) + smoothing / K``, for every task, as in the
            official code. Each head has its own ``K``.
        present: Bool ``[B]`` per entry of ``logits``; without one it is present everywhere. Logits
            of an example that lacks the modality get no gradient, whatever they are.
        heads: As for ``soft_targets``.

    Returns:
        The loss; and that of each modality's own logits, detached: the mean over the examples that
        have it, NaN where none has.

    Raises:
        ValueError: The task or kind is unknown, there are no logits, or shapes differ.
    """
    if not logits:
        raise ValueError("logits must hold at least one modality, got none")
    if kind not in LOSSES:
        raise ValueError(f"kind must be one of {', '.join(LOSSES)}, got {kind!r}")
    apart = kind == "per_modality"
    parts = [
        _Part.of(modality, given, targets, (present or {}).get(modality))
        for modality, given in logits.items()
    ]
    sizes = check_heads(task, parts[0].logits.shape[1], heads)
    with torch.autocast(parts[0].logits.device.type, enabled=False):
        losses = [
            _example_losses(
                part.logits if apart else part.logits.detach(), part.targets, task, smoothing, sizes
            )
            for part in parts
        ]
        mask = torch.stack([part.mask for part in parts])
        count = mask.sum(0).clamp(min=1)
        values = torch.stack(losses) * mask
        if apart:
            total = values.sum(0) / count
        else:
            mean = torch.stack([part.logits for part in parts]).sum(0) / count[:, None]
            total = _example_losses(mean, parts[0].targets, task, smoothing, sizes) * mask.any(0)
    means = values.detach().sum(1) / mask.sum(1)
    return total.mean(), dict(zip(logits, means.unbind(), strict=True))


class _Part(NamedTuple):
    """Logits ``[B, K]`` of a modality, zero where it is absent, their targets, and where it is."""

    logits: Tensor
    targets: Tensor
    mask: Tensor

    @classmethod
    def of(
        cls,
        modality: str,
        logits: Tensor,
        targets: Tensor | Mapping[str, Tensor],
        mask: Tensor | None,
    ) -> "_Part":
        """Check the targets, and widen to float32."""
        target = targets if isinstance(targets, Tensor) else targets[modality]
        if target.shape != logits.shape:
            raise ValueError(
                f"targets must have shape {list(logits.shape)} like logits[{modality!r}], "
                f"got {list(target.shape)}"
            )
        if mask is None:
            mask = logits.new_ones(len(logits), dtype=torch.bool)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        wide = wide.masked_fill(~mask[:, None], 0)
        return cls(wide, target.to(wide), mask)


def check_heads(task: str, n_classes: int, heads: Sequence[int] | None) -> list[int]:
    """How many outputs each head has; ``None`` for the one of a task with one.

    Raises:
        ValueError: The task is unknown, or the heads are not of it or not of so many classes.
    """
    check_task(task)
    if heads is None and task in ONE_HEAD:
        return [n_classes]
    if heads is None:
        raise ValueError(f"heads must be given for task {task!r}, got None")
    if sum(heads) != n_classes or min(heads) < 1:
        raise ValueError(f"heads must share {n_classes} outputs, got {list(heads)}")
    if task != "multitask" and len(heads) != (1 if task in ONE_HEAD else 2):
        raise ValueError(f"heads must be those of task {task!r}, got {list(heads)}")
    return list(heads)


def target_shape(task: str, n_classes: int, heads: Sequence[int] | None) -> tuple[int, ...]:
    """Shape of one example's target, as ``Manifest.target`` gives it; errors of ``check_heads``."""
    sizes = check_heads(task, n_classes, heads)
    if task in ONE_HEAD:
        return (n_classes,) if task == "multilabel" else ()
    return (len(sizes),)


def _example_losses(
    logits: Tensor, targets: Tensor, task: str, smoothing: float, heads: Sequence[int]
) -> Tensor:
    """Loss of each example ``[B]``."""
    if task == "multilabel":
        smooth = _smooth(targets, smoothing)
        return binary_cross_entropy_with_logits(logits, smooth, reduction="none").sum(1)
    pairs = zip(logits.split(heads, 1), targets.split(heads, 1), strict=True)
    return torch.stack([_cross_entropy(*pair, smoothing) for pair in pairs]).mean(0)


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return cross_entropy(logits, _smooth(targets, smoothing), reduction="none")


def _smooth(targets: Tensor, smoothing: float) -> Tensor:
    return targets * (1 - smoothing) + smoothing / targets.shape[1]
