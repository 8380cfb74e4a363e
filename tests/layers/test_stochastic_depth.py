"""Stochastic depth: who survives, and that nothing is computed for the others."""

import pytest
import torch
from model_cases import (
    assert_results_unchanged,
    fusions,
    lengths,
    random_inputs,
    tiny,
)
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mbt_fast import flops
from mbt_fast.layers.stochastic_depth import Survivors, draw_survivors

ON, OFF = {"skip_dropped": True}, {"skip_dropped": False}
skips = pytest.mark.parametrize("skip", [True, False])


@skips
def test_whole_branches_are_dropped_per_example_without_rescaling(skip):
    x, branch = torch.zeros(4000, 2, 3), torch.ones(4000, 2, 3)
    survivors = draw_survivors(x, 0.4, skip=skip)
    kept = survivors.add(x, survivors.take(branch))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert (kept == kept[:, :1, :1]).all()
    deviations = 5  # of a binomial: fails by chance once in a million seeds, and the seed is fixed
    assert abs(kept[:, 0, 0].mean() - 0.6) < deviations * (0.24 / 4000) ** 0.5


@skips
def test_who_survives_does_not_depend_on_skipping(skip):
    torch.manual_seed(3)
    expected = torch.rand(20) >= 0.5
    torch.manual_seed(3)
    survivors = draw_survivors(torch.zeros(20, 1, 1), 0.5, skip=skip)
    kept = survivors.add(torch.zeros(20, 1, 1), survivors.take(torch.ones(20, 1, 1)))
    assert torch.equal(kept[:, 0, 0] > 0, expected)
    assert 0 < expected.sum() < 20


def test_nothing_is_drawn_at_rate_zero():
    state = torch.get_rng_state()
    assert draw_survivors(torch.zeros(3, 1, 1), 0.0, skip=True) == Survivors()
    assert torch.equal(torch.get_rng_state(), state)


def test_no_copy_where_all_survive():
    assert draw_survivors(torch.zeros(3, 1, 1), 1e-9, skip=True) == Survivors()


def model_in_training(rate, **overrides):
    """Every layer drops at the same rate, the first one too."""
    model = tiny(**overrides).train()
    for layer in model.layers:
        for block in layer.values():
            block.drop_rate = rate
    return model


RATES = {
    "some": 0.5,  # unequal numbers of survivors among the streams, none in some of them
    "all": 1.0,  # every branch runs on an empty batch: gradients are zeros, as without skipping
}


@fusions
@lengths
@pytest.mark.parametrize("rate", RATES.values(), ids=RATES.keys())
def test_skipping_changes_no_result(fusion, lengths, rate):
    model = model_in_training(rate, **fusion)
    inputs = random_inputs()
    assert_results_unchanged(model, inputs, lengths, ON, OFF, seed=5)


def test_skipping_and_masking_draw_the_same_numbers():
    model, states = model_in_training(0.5), []
    for savings in (ON, OFF):
        torch.manual_seed(0)
        model.set_savings(**savings)(random_inputs())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_the_dropped_are_not_computed():
    inputs, total = random_inputs(), {}
    for rate in (0.0, 0.5, 1.0):
        with FlopCounterMode(display=False) as counter:
            model_in_training(rate)(inputs)
        total[rate] = counter.get_total_flops()
    count = flops.forward_flops(tiny().config)
    assert total[0.0] == 3 * count.total
    assert total[1.0] == 3 * count.stem_head
    assert total[1.0] < total[0.5] < total[0.0]


def test_survivors_of_one_example_count_exactly():
    """Two of three examples drop both branches of a layer: it costs what one clip costs."""
    model = model_in_training(0.0, fusion_layer=4)
    for block in model.layers[0].values():
        block.draw_survivors = lambda x: (Survivors(index=torch.tensor([1])),) * 2
    with FlopCounterMode(display=False) as counter:
        model(random_inputs())
    count = flops.forward_flops(model.config)
    assert counter.get_total_flops() == 3 * count.total - 2 * count.layers[0].total


def test_dropout_draws_the_same_numbers_with_and_without_skipping():
    model, results = model_in_training(0.5, dropout=0.3), []
    for savings in (ON, OFF):
        torch.manual_seed(0)
        results.append(model.set_savings(**savings)(random_inputs()))
    assert torch.equal(*results)


def test_evaluation_drops_nothing():
    model, inputs = model_in_training(1.0), random_inputs()
    trained = model(inputs)
    assert not torch.allclose(model.eval()(inputs), trained)
    state = torch.get_rng_state()
    model(inputs)
    assert torch.equal(torch.get_rng_state(), state)


def test_activation_checkpointing_draws_the_same_survivors():
    model, inputs = model_in_training(0.5), random_inputs()
    parameters = list(model.parameters())
    grads = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        torch.manual_seed(0)
        loss = run(inputs).square().sum()
        grads.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    torch.testing.assert_close(*grads)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_training_masks():
    """In one graph, without a break: the mask is drawn inside it, and nothing is skipped."""
    inputs = random_inputs()
    for rate in (1.0, 0.5):
        model = model_in_training(rate)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        first, second = compiled(inputs), compiled(inputs)
        if rate == 1.0:
            torch.testing.assert_close(first, model(inputs))
        else:
            assert not torch.equal(first, second), "the mask is a constant of the graph"


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, on the CPU
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_over_training(randomness):
    model = model_in_training(1.0)
    inputs = random_inputs()

    def run(inputs):
        return model({m: x.unsqueeze(0) for m, x in inputs.items()})

    mapped = torch.vmap(run, randomness=randomness)(inputs)
    torch.testing.assert_close(mapped[:, 0], model(inputs))


@pytest.mark.gpu
@skips
def test_the_device_is_not_waited_for(skip):
    x = torch.randn(64, 8, 16, device="cuda", requires_grad=True)
    draw_survivors(x, 0.5, skip=skip)  # the first pinned allocation may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        survivors = draw_survivors(x, 0.5, skip=skip)
        survivors.add(x, survivors.take(x)).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
