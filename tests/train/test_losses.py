"""The loss, against plain formulas in float64."""

import pytest
import torch
from torch import nn

from mbt_fast.train.losses import loss, soft_targets

B, K = 6, 7
HEADS = {"verb_noun": (3, 4), "multitask": (2, 1, 4)}


def logits():
    return {m: torch.randn(B, K, dtype=torch.float64) * 3 for m in ("rgb", "spectrogram")}


def targets(task):
    if task == "multilabel":
        return soft_targets(torch.rand(B, K) < 0.4, task, K)
    if task == "single":
        return soft_targets(torch.randint(K, (B,)), task, K)
    labels = torch.stack([torch.randint(size, (B,)) for size in HEADS[task]], dim=1)
    return soft_targets(labels, task, K, HEADS[task])


def by_formula(z, y, task, smoothing):
    """Loss of one example."""
    if task in HEADS:
        parts = zip(z.split(HEADS[task]), y.split(HEADS[task]), strict=True)
        return sum(by_formula(*part, "single", smoothing) for part in parts) / len(HEADS[task])
    y = y.double() * (1 - smoothing) + smoothing / len(y)
    if task == "single":
        return -(y * (z - z.exp().sum().log())).sum()
    p = 1 / (1 + (-z).exp())
    return -(y * p.log() + (1 - y) * (1 - p).log()).sum()


def check(actual, expected):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("task", ["multilabel", "single", *HEADS])
def test_loss_is_the_mean_over_modalities_and_examples(task, smoothing):
    given, y = logits(), targets(task)
    options = {"task": task, "smoothing": smoothing, "heads": HEADS.get(task)}
    total, parts = loss(given, y, **options)
    each = {
        m: sum(by_formula(z, row, task, smoothing) for z, row in zip(given[m], y, strict=True)) / B
        for m in given
    }
    check(total, sum(each.values()) / 2)
    for m in given:
        check(parts[m], each[m])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("task", ["multilabel", "single", *HEADS])
def test_loss_of_the_mean_logits(task, smoothing):
    given, y = logits(), targets(task)
    options = {"task": task, "smoothing": smoothing, "heads": HEADS.get(task)}
    total, parts = loss(given, y, kind="mean_logits", **options)
    mean = (given["rgb"] + given["spectrogram"]) / 2
    check(total, sum(by_formula(*pair, task, smoothing) for pair in zip(mean, y, strict=True)) / B)
    _, apart = loss(given, y, **options)
    assert all(torch.equal(parts[m], apart[m]) for m in given)


def test_mean_logits_are_over_the_modalities_that_an_example_has():
    given, y = logits(), targets("single")
    present = {"rgb": torch.tensor([True] * 4 + [False] * 2)}
    present["spectrogram"] = torch.tensor([True, True, False, False, True, False])
    given["rgb"][4:], given["spectrogram"][2:4] = float("nan"), float("inf")
    for z in given.values():
        z.requires_grad_()
    total, _ = loss(given, y, task="single", kind="mean_logits", present=present)
    means = [
        torch.stack([z[row] for m, z in given.items() if present[m][row]]).mean(0)
        for row in range(5)
    ]
    check(total, sum(by_formula(z, t, "single", 0) for z, t in zip(means, y, strict=False)) / B)
    total.backward()
    for m, z in given.items():
        assert (z.grad[~present[m]] == 0).all()
        assert (z.grad[present[m]] != 0).any()


def test_an_example_counts_the_modalities_that_it_has():
    given, y = logits(), targets("single")
    present = {"rgb": torch.tensor([1, 1, 0, 0, 1, 1]) > 0}
    present["spectrogram"] = torch.tensor([1, 0, 1, 0, 1, 1]) > 0
    expected = 0.0
    for i in range(B):
        own = [by_formula(given[m][i], y[i], "single", 0) for m in given if present[m][i]]
        expected += sum(own) / max(len(own), 1) / B
    total, parts = loss(given, y, task="single", present=present)
    check(total, expected)
    rgb = [by_formula(z, row, "single", 0) for z, row in zip(given["rgb"], y, strict=True)]
    check(parts["rgb"], (rgb[0] + rgb[1] + rgb[4] + rgb[5]) / 4)


def test_losses_of_parts_add_up_whatever_is_absent():
    given, y = logits(), targets("multilabel")
    present = {m: torch.rand(B) < 0.5 for m in given}
    whole, _ = loss(given, y, task="multilabel", present=present)
    parts = [
        loss({m: z[cut] for m, z in given.items()}, y[cut], task="multilabel",
             present={m: here[cut] for m, here in present.items()})[0]
        for cut in (slice(0, 2), slice(2, B))
    ]  # fmt: skip
    check(whole, (2 * parts[0] + 4 * parts[1]) / B)


def test_logits_of_an_absent_modality_get_no_gradient_though_they_are_nan():
    given = logits()
    given["rgb"][0] = float("nan")
    for z in given.values():
        z.requires_grad_()
    present = {"rgb": torch.arange(B) > 0}
    total, _ = loss(given, targets("multilabel"), task="multilabel", present=present)
    total.backward()
    assert (given["rgb"].grad[0] == 0).all()
    assert given["rgb"].grad[1:].isfinite().all()
    assert total.isfinite()


def test_a_modality_that_nobody_has_is_nan_and_the_loss_is_not():
    present = {"rgb": torch.zeros(B, dtype=torch.bool)}
    total, parts = loss(logits(), targets("single"), task="single", present=present)
    assert parts["rgb"].isnan()
    assert total.isfinite()


def test_targets_may_differ_between_modalities():
    given, first, second = logits(), targets("single"), targets("single")
    total, _ = loss(given, {"rgb": first, "spectrogram": second}, task="single")
    alone = [
        loss({m: given[m]}, y, task="single")[0]
        for m, y in (("rgb", first), ("spectrogram", second))
    ]
    check(total, sum(alone) / 2)


def test_loss_is_float32_under_autocast():
    y = targets("multilabel")
    with torch.autocast("cpu", torch.bfloat16):
        z = nn.Linear(4, K)(torch.randn(B, 4))
        assert z.dtype == torch.bfloat16
        inside, _ = loss({"rgb": z}, y, task="multilabel")
    outside, _ = loss({"rgb": z.float()}, y, task="multilabel")
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_soft_targets():
    assert soft_targets(torch.tensor([2, 0]), "single", 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    verb_noun = soft_targets(torch.tensor([[1, 0]]), "verb_noun", 5, (2, 3))
    assert verb_noun.tolist() == [[0, 1, 1, 0, 0]]
    assert soft_targets(torch.zeros(0, 2), "verb_noun", 5, (2, 3)).shape == (0, 5)
    many = soft_targets(torch.tensor([[True, True, False]]), "multilabel", 3)
    assert many.dtype == torch.float32
    assert many.tolist() == [[1, 1, 0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soft_targets(torch.zeros(2, 3), "single", 3), r"shape \[B\] for task 'single'"),
        (lambda: soft_targets(torch.zeros(2), "multilabel", 3), r"shape \[B, 3\]"),
        (lambda: soft_targets(torch.zeros(2), "both", 3), "task must be one of multilabel"),
        (lambda: soft_targets(torch.zeros(2, 2), "verb_noun", 3), "heads must be given for task"),
        (lambda: soft_targets(torch.zeros(2), "single", 3, (1, 2)), "must be those of task 'singl"),
        (lambda: soft_targets(torch.zeros(2, 3), "verb_noun", 3, (1, 1, 1)), "must be those of"),
        (lambda: soft_targets(torch.zeros(2, 2), "multitask", 3, (1, 1)), "must share 3 outputs"),
        (lambda: soft_targets(torch.zeros(2, 3), "multitask", 3, (1, 2)), r"have shape \[B, 2\]"),
        (lambda: loss(logits(), targets("single"), task="single", kind="sum"), "kind must be one"),
        (lambda: loss({}, torch.zeros(2, 3), task="single"), "at least one modality"),
        (lambda: loss(logits(), torch.zeros(2, 3), task="single"), r"targets must have shape \[6"),
    ],
)
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
