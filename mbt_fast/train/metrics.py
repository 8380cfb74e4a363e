"""Scores of a whole data set: mean average precision, top-k, and accuracies of several heads.

They are those of scikit-learn and of the challenge, in float64 on the CPU, with ties.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_ROWS = 256  # examples whose pairs of verb and noun are compared at once


class MeanAveragePrecision(NamedTuple):
    """Average precision of each class, float64 ``[K]``, NaN for a class without positives.

    ``mean`` is over the other classes (NaN if there are none), ``skipped`` their complement's size.
    """

    mean: float
    per_class: Tensor
    skipped: int


def mean_average_precision(scores: Tensor, targets: Tensor) -> MeanAveragePrecision:
    """Area under the curve of precision and recall, by steps, as scikit-learn computes it.

    ``sum over thresholds of (recall - recall of the threshold before) * precision``; examples with
    equal scores share a threshold.

    Args:
        scores: ``[N, K]``; only their order within a class counts.
        targets: 1 where the class is present and 0 elsewhere, ``[N, K]`` of any dtype.

    Raises:
        ValueError: Shapes differ, a score is NaN, or a target is neither 0 nor 1.
    """
    scores, targets = _checked(scores), targets.detach().cpu()
    if targets.shape != scores.shape:
        raise ValueError(
            f"targets must have shape {list(scores.shape)} like scores, got {list(targets.shape)}"
        )
    if not ((targets == 0) | (targets == 1)).all():
        raise ValueError("targets must be 0 or 1, got another value")
    columns = zip(scores.T.contiguous(), targets.T.contiguous() == 1, strict=True)
    values = [_average_precision(*column) for column in columns]
    per_class = torch.stack(values) if values else scores.new_empty(0)
    return MeanAveragePrecision(float(per_class.nanmean()), per_class, int(per_class.isnan().sum()))


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of the examples whose class is among the ``k`` best; NaN without examples.

    Among equal scores the class with the greater index comes first, as in scikit-learn.

    Args:
        scores: ``[N, K]``.
        labels: Classes, integer ``[N]``.
        k: At least 1.

    Raises:
        ValueError: Shapes do not fit, a score is NaN, a label is no class, or ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return _share(ranks(scores, labels) < k)


def per_class_accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """Top-1 accuracy among the examples of each class, float64 ``[K]``, NaN for an empty class.

    Arguments as in ``top_k_accuracy``.
    """
    hits = ranks(scores, labels) < 1
    counts = labels.cpu().bincount(minlength=scores.shape[1])
    return labels.cpu().bincount(hits.double(), minlength=scores.shape[1]) / counts


def verb_noun_accuracy(
    verb_scores: Tensor, noun_scores: Tensor, labels: Tensor
) -> dict[str, float]:
    """Accuracies of Epic-Kitchens-100's challenge: of verb, noun and their pair, the action.

    An action scores the product of the probabilities of its verb and its noun. It is right at 5 if
    it is one of the five best *pairs*, which is stricter than a verb among the five best verbs and
    a noun among the five best nouns.

    Args:
        verb_scores: Logits ``[N, V]``.
        noun_scores: Logits ``[N, W]``.
        labels: Verbs and nouns, integer ``[N, 2]``.

    Returns:
        ``verb``, ``noun``, ``action``, and the same at 5: ``verb_top5`` and so on.

    Raises:
        ValueError: Shapes do not fit, a score is NaN, or a label is no class.
    """
    if labels.ndim != 2 or labels.shape[1] != 2:
        raise ValueError(f"labels must have shape [N, 2], got {list(labels.shape)}")
    verbs, nouns = labels.cpu().long().unbind(1)
    found = {
        "verb": ranks(verb_scores, verbs),
        "noun": ranks(noun_scores, nouns),
        "action": _pair_ranks(verb_scores, noun_scores, verbs, nouns),
    }
    best = {name: _share(rank < 1) for name, rank in found.items()}
    return best | {f"{name}_top5": _share(rank < 5) for name, rank in found.items()}


def head_accuracy(scores: Mapping[str, Tensor], labels: Tensor) -> dict[str, float]:
    """Top-1 accuracy of each head of a model with several, and their mean.

    Args:
        scores: Logits ``[N, K]`` of each head.
        labels: The class of each head, integer ``[N, H]``, heads in the order of ``scores``.

    Returns:
        ``top1``, the mean, and ``top1/HEAD`` for each head.

    Raises:
        ValueError: Shapes do not fit, a score is NaN, or a label is no class.
    """
    if labels.shape[1:] != (len(scores),):
        raise ValueError(f"labels must have shape [N, {len(scores)}], got {list(labels.shape)}")
    pairs = zip(scores.items(), labels.unbind(1), strict=True)
    by_head = {f"top1/{head}": top_k_accuracy(part, own, 1) for (head, part), own in pairs}
    return {"top1": sum(by_head.values()) / len(by_head), **by_head}


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before each example's own, int64 ``[N]``.

    Arguments, order of ties and errors as in ``top_k_accuracy``.
    """
    scores, labels = _checked(scores), labels.detach().cpu().long()
    if labels.shape != scores.shape[:1]:
        raise ValueError(f"labels must have shape [{len(scores)}], got {list(labels.shape)}")
    wrong = labels[(labels < 0) | (labels >= scores.shape[1])]
    if len(wrong):
        raise ValueError(f"labels must be in 0..{scores.shape[1] - 1}, got {int(wrong[0])}")
    own = scores.gather(1, labels[:, None])
    later = torch.arange(scores.shape[1]) > labels[:, None]
    return ((scores > own) | ((scores == own) & later)).sum(1)


def _pair_ranks(verb_scores: Tensor, noun_scores: Tensor, verbs: Tensor, nouns: Tensor) -> Tensor:
    """Rank of each example's pair among all pairs, which are numbered verb by verb.

    The product of two softmaxes has the order of the sum of their logits, which cannot underflow.
    """
    pairs = verbs * noun_scores.shape[1] + nouns
    wide = verb_scores.cpu().double(), noun_scores.cpu().double()
    parts = zip(*(x.split(_ROWS) for x in (*wide, pairs)), strict=True)
    found = [
        ranks((verb[:, :, None] + noun[:, None]).flatten(1), pair) for verb, noun, pair in parts
    ]
    return torch.cat(found)


def _average_precision(scores: Tensor, positive: Tensor) -> Tensor:
    """Average precision of one class."""
    order = scores.argsort(descending=True)
    scores, hits = scores[order], positive[order].cumsum(0)
    last = torch.ones_like(positive)  # of the examples with its score
    last[:-1] = scores[1:] != scores[:-1]
    hits = hits[last].double()
    precision = hits / (last.nonzero()[:, 0] + 1)
    gained = hits.diff(prepend=hits.new_zeros(1))
    return (gained * precision).sum() / hits[-1:].sum()


def _checked(scores: Tensor) -> Tensor:
    """Scores ``[N, K]`` in float64 on the CPU."""
    if scores.ndim != 2:
        raise ValueError(f"scores must have shape [N, K], got {list(scores.shape)}")
    scores = scores.detach().cpu().double()
    undefined = scores.isnan().any(1)
    if undefined.any():
        raise ValueError(
            f"scores must not be NaN, got NaN in {int(undefined.sum())} of {len(scores)} rows, "
            f"first in row {int(undefined.nonzero()[0])}"
        )
    return scores


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
