"""The order of a run: a function of seed and place, whatever the workers and ranks."""

import subprocess
import sys

import pytest
import torch

from mbt_fast.train.order import BatchKeys, draw, epoch_order, generator, seed_of


def test_an_epoch_has_every_clip_once():
    order = epoch_order(101, seed=3, epoch=5)
    assert order.sort().values.tolist() == list(range(101))


def test_order_is_the_same_in_another_process():
    code = "from mbt_fast.train.order import *; print(epoch_order(50, 3, 5).tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(epoch_order(50, 3, 5).tolist())


def test_orders_of_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(50, s, e).tolist()) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_streams_of_two_purposes_do_not_mix():
    assert seed_of(0, "window", 1, 12) != seed_of(0, "window", 11, 2)
    assert seed_of(0, "window", 1) != seed_of(0, "augment", 1)
    first, again = (torch.rand(3, generator=generator(0, "window", 1)) for _ in range(2))
    assert torch.equal(first, again)


def test_torchs_own_generator_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    list(BatchKeys(10, 2, seed=0, start=0, stop=9))
    assert torch.equal(torch.rand(1), expected)


def test_weighted_order_follows_the_weights():
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0], dtype=torch.float64)
    drawn = draw(4, 40_000, generator(0), weights).bincount(minlength=4)
    assert drawn[0] == drawn[3] == 0
    share = drawn[2] / 40_000
    assert abs(share - 0.75) < 5 * (0.75 * 0.25 / 40_000) ** 0.5, "five standard deviations"


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_weights_that_cannot_be_drawn_from_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be finite"):
        draw(2, 1, generator(0), torch.tensor(weights, dtype=torch.float64))


def test_batches_of_a_resumed_run_are_the_rest_of_the_run():
    whole = list(BatchKeys(23, 4, seed=1, start=0, stop=17))
    rest = list(BatchKeys(23, 4, seed=1, start=6, stop=17))
    assert rest == whole[6:]
    assert len(BatchKeys(23, 4, seed=1, start=6, stop=17)) == len(rest)


def test_what_an_epoch_leaves_over_is_not_used():
    batches = list(BatchKeys(23, 4, seed=1, start=0, stop=10))
    for epoch in (0, 1):
        keys = [key for batch in batches for key in batch if key.epoch == epoch]
        assert [key.position for key in keys] == list(range(20))
        assert len({key.entry for key in keys}) == 20


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_cut_the_same_batches(world):
    whole = list(BatchKeys(23, 4, seed=1, start=2, stop=8))
    ranks = [list(BatchKeys(23, 4, 1, 2, 8, rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        parts = [keys[step] for keys in ranks]
        assert sorted(key for part in parts for key in part) == sorted(batch)
