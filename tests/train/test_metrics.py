"""Scores, against scikit-learn and the definition of the Epic-Kitchens challenge."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from mbt_fast.train.metrics import (
    mean_average_precision,
    per_class_accuracy,
    ranks,
    top_k_accuracy,
    verb_noun_accuracy,
)

N, K = 211, 13
V, W = 5, 7


def tied(*shape):
    """Scores with many ties."""
    return torch.randint(6, shape).double() / 4


def multi_hot():
    targets = torch.rand(N, K) < torch.linspace(0.0, 0.6, K)
    targets[:, 0] = False
    targets[:, 1] = True
    targets[:, 2] = torch.arange(N) == 3
    return targets


@pytest.mark.parametrize("scores", [torch.randn, tied, torch.zeros])
def test_average_precision_is_that_of_scikit_learn(scores):
    scores, targets = scores(N, K), multi_hot()
    result = mean_average_precision(scores, targets)
    expected = average_precision_score(targets[:, 1:].numpy(), scores[:, 1:].numpy(), average=None)
    np.testing.assert_allclose(result.per_class[1:].numpy(), expected, rtol=1e-12)
    assert result.per_class[0].isnan()
    assert result.skipped == 1
    assert result.mean == pytest.approx(expected.mean())


def test_scores_keep_their_float64_order():
    scores = torch.tensor([[1.0], [1.0 + 1e-12], [1.0 - 1e-12]], dtype=torch.float64)
    assert mean_average_precision(scores, torch.tensor([[0], [1], [0]])).mean == 1


def test_mean_over_no_class_is_nan():
    result = mean_average_precision(torch.randn(4, 2), torch.zeros(4, 2))
    assert math.isnan(result.mean)
    assert result.skipped == 2


@pytest.mark.parametrize("scores", [torch.randn, tied, torch.zeros])
@pytest.mark.parametrize("k", [1, 2, 5, K, K + 3])
def test_top_k_is_that_of_scikit_learn(scores, k):
    scores, labels = scores(N, K), torch.randint(K - 1, (N,))
    with warnings.catch_warnings():  # that a k of all classes is always right
        warnings.simplefilter("ignore")
        expected = top_k_accuracy_score(labels.numpy(), scores.numpy(), k=k, labels=np.arange(K))
    assert top_k_accuracy(scores, labels, k) == pytest.approx(expected)


def test_of_equal_scores_the_greatest_index_comes_first():
    assert ranks(torch.zeros(3, 3), torch.tensor([2, 1, 0])).tolist() == [0, 1, 2]


def test_per_class_accuracy():
    scores, labels = torch.eye(4)[[0, 0, 1, 2]], torch.tensor([0, 1, 1, 2])
    result = per_class_accuracy(scores, labels)
    assert result[:3].tolist() == [1, 0.5, 1]
    assert result[3].isnan()


def best_pairs(verb, noun, k):
    """The k best of all pairs by the product of the two softmaxes."""
    verb, noun = (np.exp(x) / np.exp(x).sum() for x in (verb, noun))
    outer = verb[:, None] * noun[None]
    order = np.argsort(outer.ravel())[::-1][:k]
    return list(zip(*np.unravel_index(order, outer.shape), strict=True))


def test_actions_are_the_best_pairs():
    verb, noun = torch.randn(N, V).double() * 3, torch.randn(N, W).double() * 3
    labels = torch.stack([torch.randint(V, (N,)), torch.randint(W, (N,))], dim=1)
    result = verb_noun_accuracy(verb, noun, labels)
    for k, suffix in ((1, ""), (5, "_top5")):
        right = [
            tuple(label) in best_pairs(v, n, k)
            for v, n, label in zip(verb.numpy(), noun.numpy(), labels.tolist(), strict=True)
        ]
        assert result[f"action{suffix}"] == pytest.approx(np.mean(right))
        assert result[f"verb{suffix}"] == top_k_accuracy(verb, labels[:, 0], k)
        assert result[f"noun{suffix}"] == top_k_accuracy(noun, labels[:, 1], k)


def test_tied_actions_are_ordered_like_other_classes():
    verb, noun = tied(N, V), tied(N, W)
    pairs = torch.randint(V * W, (N,))
    labels = torch.stack([pairs // W, pairs % W], dim=1)
    result = verb_noun_accuracy(verb, noun, labels)
    both = (verb[:, :, None] + noun[:, None]).flatten(1)  # exact: multiples of 1/4
    for k, name in ((1, "action"), (5, "action_top5")):
        expected = top_k_accuracy_score(pairs, both, k=k, labels=np.arange(V * W))
        assert result[name] == pytest.approx(expected)


def test_a_very_sure_model_still_has_an_order_of_actions():
    verb, noun = torch.tensor([[0.0, -900.0, -901.0]]), torch.tensor([[0.0, -900.0]])
    result = verb_noun_accuracy(verb, noun, torch.tensor([[2, 1]]))
    assert result["action_top5"] == 0  # the last of six, though all but one underflow


def test_verb_and_noun_among_their_five_best_is_not_enough():
    verb, noun = torch.arange(5.0).flip(0)[None], torch.arange(5.0).flip(0)[None]
    result = verb_noun_accuracy(verb, noun, torch.tensor([[3, 3]]))
    assert result["verb_top5"] == result["noun_top5"] == 1
    assert result["action_top5"] == 0


def test_many_more_examples_than_pairs_are_held_at_once():
    verb, noun = torch.randn(700, 3), torch.randn(700, 4)
    labels = torch.stack([verb.argmax(1), noun.argmax(1)], dim=1)
    assert verb_noun_accuracy(verb, noun, labels)["action"] == 1


def test_audioset_is_scored_in_seconds():
    scores, targets = torch.randn(20_000, 527), torch.rand(20_000, 527) < 0.005
    result = mean_average_precision(scores, targets)
    assert result.mean == pytest.approx(0.005, abs=0.003)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_average_precision(torch.zeros(2, 3), torch.zeros(2, 2)), r"shape \[2, 3\]"),
        (lambda: mean_average_precision(torch.zeros(2, 1), torch.full((2, 1), 0.5)), "0 or 1"),
        (lambda: mean_average_precision(torch.tensor([[0.0], [math.nan]]), torch.ones(2, 1)),
         "NaN in 1 of 2 rows, first in row 1"),
        (lambda: top_k_accuracy(torch.zeros(2, 3), torch.tensor([0, 3]), 1), "in 0..2, got 3"),
        (lambda: top_k_accuracy(torch.zeros(2, 3), torch.zeros(3), 1), r"shape \[2\], got \[3\]"),
        (lambda: top_k_accuracy(torch.zeros(2, 3), torch.zeros(2), 0), "k must be at least 1"),
        (lambda: verb_noun_accuracy(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)),
         r"shape \[N, 2\]"),
    ],
)  # fmt: skip
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
