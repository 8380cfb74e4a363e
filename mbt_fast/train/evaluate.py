"""Scores of a model on the clips of a manifest."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mbt_fast.data import ClipTransform
from mbt_fast.data.classes import head_sizes
from mbt_fast.data.manifest import Manifest
from mbt_fast.errors import RunError
from mbt_fast.parallel.data_parallel import is_sharded
from mbt_fast.parallel.ranks import Ranks
from mbt_fast.train.clip_cache import ClipCache
from mbt_fast.train.metrics import (
    head_accuracy,
    mean_average_precision,
    per_class_accuracy,
    top_k_accuracy,
    verb_noun_accuracy,
)
from mbt_fast.train.predictions import Predictions, merge, predict

Record = dict[str, Any]
_SHOWN = 5  # broken clips


def evaluate(
    model: nn.Module,
    manifest: Manifest,
    transform: ClipTransform,
    *,
    task: str,
    names: Sequence[str],
    views: int = 4,
    modalities: Sequence[str] | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    mask_padding: bool = False,
    errors: str = "strict",
    broken_limit: float = 1.0,
    cache: ClipCache | None = None,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
) -> Record | None:
    """Score every clip once.

    Args:
        model: See ``predict``, and so for what is not listed here.
        manifest: The clips with their labels.
        transform: What the model takes.
        task: See ``mbt_fast.data.classes.TASKS``.
        names: The classes, in the order of the outputs.
        views: Windows of a clip that is longer than one.
        modalities: What the model is given of a clip; ``None`` for all that it takes.
        batch_size: Windows at a time.
        workers: Processes that read clips.
        device: Where the model is.
        dtype: Of autocast.
        mask_padding: Whether tokens of padding are masked.
        errors: As for ``load_clip``.
        broken_limit: Share of the clips that may be unreadable.
        cache: As for ``predict``.
        stop: Asked before each batch; ``True`` ends the work.
        ranks: Processes that share the clips, each with the model; alone if not given.

    Returns:
        What ``summary`` says, the same on every rank, or ``None`` if one was stopped.

    Raises:
        InputError: A label is no class.
        RunError: A logit is NaN, or more clips than the limit cannot be read.
        ValueError: The transform has no such modality.
    """
    ranks = ranks or Ranks()
    targets = manifest.targets(names, task)  # first: it may refuse
    found = predict(
        model,
        manifest,
        transform,
        subsets=[tuple(modalities or transform.windows)],
        views=views,
        batch_size=batch_size,
        workers=workers,
        device=device,
        dtype=dtype,
        mask_padding=mask_padding,
        errors=errors,
        rank=ranks.rank,
        world=ranks.world,
        together=is_sharded(model),
        cache=cache,
        stop=stop,
        agree=ranks.any,
    )
    if found is None:
        return None
    parts, record = ranks.gather(found[0]), None
    if ranks.main:
        predictions = merge(parts, len(manifest))
        _check_broken(predictions, manifest, broken_limit)
        record = summary(predictions, manifest, views) | score(predictions, targets, task, names)
    return ranks.share(record)


def summary(predictions: Predictions, manifest: Manifest, views: int) -> Record:
    """What was predicted and what was not, as JSON knows it.

    ``n`` clips are scored, from at most ``views`` windows each. ``absent`` counts those of them
    that lack a modality, ``without`` the clips that have none of ``modalities``; ``broken`` lists
    those that cannot be read. ``constant`` is an alarm: all clips got the same logits.
    """
    return {
        "modalities": list(predictions.modalities),
        "n": len(predictions.rows),
        "views": views,
        "absent": predictions.absent,
        "without": len(predictions.without),
        "broken": [
            {"id": manifest[row].id, "error": error} for row, error in predictions.broken.items()
        ],
        "constant": predictions.constant,
    }


def score(predictions: Predictions, targets: Tensor, task: str, names: Sequence[str]) -> Record:
    """Scores as JSON knows them; ``None`` is one that does not exist.

    Args:
        predictions: Of some clips.
        targets: Of all clips of the manifest, see ``Manifest.targets``.
        task: ``"multilabel"`` gives ``mAP`` and ``skipped``, the number of classes without a clip;
            ``"single"`` ``top1`` and ``top5``; ``"verb_noun"`` ``verb``, ``noun``, ``action`` and
            the same with ``_top5``; ``"multitask"`` ``top1/HEAD`` of each head and ``top1``, their
            mean.
        names: The classes.
    """
    logits, targets = predictions.logits.view(-1, len(names)), targets[predictions.rows]
    scores: Mapping[str, float]
    if task == "multilabel":
        result = mean_average_precision(logits, targets)
        scores = {"mAP": result.mean, "skipped": result.skipped}
    elif task == "single":
        scores = {f"top{k}": top_k_accuracy(logits, targets, k) for k in (1, 5)}
    elif task == "verb_noun":
        parts = _by_head(logits, task, names)
        scores = verb_noun_accuracy(parts["verb"], parts["noun"], targets)
    else:
        scores = head_accuracy(_by_head(logits, task, names), targets)
    return {name: _number(value) for name, value in scores.items()}


def per_class(
    predictions: Predictions, targets: Tensor, task: str, names: Sequence[str]
) -> dict[str, float | None]:
    """Average precision of each class (``"multilabel"``), or accuracy among its clips.

    ``None`` is a class without clips. Arguments as in ``score``.
    """
    logits, targets = predictions.logits.view(-1, len(names)), targets[predictions.rows]
    if task == "multilabel":
        values = mean_average_precision(logits, targets).per_class
    elif task == "single":
        values = per_class_accuracy(logits, targets)
    else:
        pairs = zip(_by_head(logits, task, names).values(), targets.unbind(1), strict=True)
        values = torch.cat([per_class_accuracy(part, labels) for part, labels in pairs])
    return dict(zip(names, map(_number, values.tolist()), strict=True))


def _by_head(logits: Tensor, task: str, names: Sequence[str]) -> dict[str, Tensor]:
    """The logits ``[n, K]`` of each head."""
    sizes = head_sizes(names, task)
    return dict(zip(sizes, logits.split(list(sizes.values()), dim=1), strict=True))


def _check_broken(predictions: Predictions, manifest: Manifest, limit: float) -> None:
    broken = predictions.broken
    if len(broken) > limit * len(manifest):
        first = "; ".join(list(broken.values())[:_SHOWN])
        raise RunError(
            f"the share of broken clips must be at most {limit:g}, and {len(broken)} of "
            f"{len(manifest)} in {manifest.path} cannot be read: {first}"
        )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
