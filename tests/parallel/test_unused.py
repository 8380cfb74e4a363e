"""Weights that a step, or a model, has no use for hold up no rank, and change nothing."""

import pytest
import torch
from ranks import run
from training import assert_same_records, assert_same_tensors, joined, together

from mbt_fast.data.synthetic import SyntheticSet, write_synthetic

HOW = {"replicated": [], "sharded": ["train.parallel=fsdp"]}
LATE = ["train.steps=3", "model.fusion_layer=2", "train.weight_decay=0.1"]


@pytest.fixture(scope="module")
def silent(recipe, tmp_path_factory):
    """A recipe whose clips are all without sound."""
    folder = tmp_path_factory.mktemp("silent")
    list(write_synthetic(folder, SyntheticSet(8, classes=2, seconds=0.4, val=0.0, silent=0.999)))
    (folder / "recipe.toml").write_text(recipe.read_text())
    return folder / "recipe.toml"


def test_slots_of_late_fusion_are_left_alone(recipe, tmp_path):
    """No layer reads them, so they have no gradient on any rank."""
    check(recipe, {how: [*LATE, *options] for how, options in HOW.items()}, tmp_path)


def test_a_modality_that_no_clip_of_any_rank_has(silent, tmp_path):
    check(silent, {how: ["train.steps=2", *options] for how, options in HOW.items()}, tmp_path)


def check(recipe, cases, out):
    """Two ranks do what one process does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = together(cases, recipe, out / "alone")
    torch.set_num_threads(threads)
    results = run(2, together, cases, recipe, out / "together", seconds=100)
    for name in cases:
        records, tensors = joined([result[name] for result in results])
        expected_records, expected = joined([alone[name]])
        assert_same_records(records, expected_records)
        assert_same_tensors(tensors, expected, name)
