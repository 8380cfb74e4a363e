"""Stochastic depth: who is kept, and that nothing is computed for the others."""

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
from mbt_fast.testing import saved_bytes

SEED = 3
SKIPPED, MASKED = {"skip_dropped": True}, {"skip_dropped": False}
ways = pytest.mark.parametrize("options", [SKIPPED, MASKED], ids=["skipped", "masked"])


def in_training(rate, **overrides):
    """A model in which every layer drops at the same rate, the first one too."""
    model = tiny(**overrides).train()
    for layer in model.layers:
        for block in layer.values():
            block.drop_rate = rate
    return model


def added(rate, examples, options):
    """How many branches are added to each example by a layer in which each branch is one."""
    model = in_training(rate).set_execution(**options)
    block = model.layers[0].block_of("rgb")
    for linear in (block.attn.proj, block.mlp.fc2):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.ones_(linear.bias)
    x = torch.zeros(examples, 2, 64, dtype=torch.float64)
    torch.manual_seed(SEED)
    out = model.layers[0]({"rgb": x}, {})["rgb"]
    assert (out == out[:, :1, :1]).all(), "a branch is dropped in part"
    return out[:, 0, 0]


@ways
def test_whole_branches_are_dropped_per_example_without_rescaling(options):
    count = added(0.4, 2000, options)
    assert set(count.unique().tolist()) == {0.0, 1.0, 2.0}
    deviations = 5  # of a binomial: fails by chance once in a million seeds, and the seed is fixed
    assert abs(count.mean() - 1.2) < deviations * (2 * 0.24 / 2000) ** 0.5


@ways
def test_who_is_kept_does_not_depend_on_skipping(options):
    actual = added(0.5, 20, options)
    torch.manual_seed(SEED)
    assert torch.equal(actual, sum((torch.rand(20) >= 0.5).double() for _ in range(2)))
    assert 0 < actual.sum() < 40


def test_nothing_is_drawn_at_rate_zero():
    model, inputs = in_training(0.0), random_inputs()
    state = torch.get_rng_state()
    model(inputs)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_copied_where_all_are_kept():
    inputs, all_kept, undropped = random_inputs(), in_training(1e-9), in_training(0.0)
    assert saved_bytes(lambda: all_kept(inputs)) == saved_bytes(lambda: undropped(inputs))


RATES = {
    "some": 0.5,  # unequal numbers of examples among the streams, none in some of them
    "all": 1.0,  # every branch runs on an empty batch: gradients are zeros, as without skipping
}


@fusions
@lengths
@pytest.mark.parametrize("rate", RATES.values(), ids=RATES.keys())
def test_skipping_changes_no_result(fusion, lengths, rate):
    model = in_training(rate, **fusion)
    assert_results_unchanged(model, random_inputs(), lengths, SKIPPED, MASKED, seed=5)


def test_skipping_and_masking_draw_the_same_numbers():
    model, states = in_training(0.5), []
    for options in (SKIPPED, MASKED):
        torch.manual_seed(0)
        model.set_execution(**options)(random_inputs())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def flops_of(model):
    with FlopCounterMode(display=False) as counter:
        model(random_inputs())
    return counter.get_total_flops()


def test_the_dropped_are_not_computed():
    total = {rate: flops_of(in_training(rate)) for rate in (0.0, 0.5, 1.0)}
    count = flops.forward_flops(tiny().config)
    assert total[0.0] == 3 * count.total
    assert total[1.0] == 3 * count.stem_head
    assert total[1.0] < total[0.5] < total[0.0]


def test_a_layer_of_one_kept_example_costs_what_one_clip_costs(monkeypatch):
    model = in_training(0.0, fusion_layer=4)
    for block in model.layers[0].values():
        block.drop_rate = 0.5
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.tensor([0.0, 1.0, 0.0]))
    count = flops.forward_flops(model.config)
    assert flops_of(model) == 3 * count.total - 2 * count.layers[0].total


def test_dropout_draws_the_same_numbers_with_and_without_skipping():
    model, results = in_training(0.5, dropout=0.3), []
    for options in (SKIPPED, MASKED):
        torch.manual_seed(0)
        results.append(model.set_execution(**options)(random_inputs()))
    assert torch.equal(*results)


def test_evaluation_drops_nothing():
    model, inputs = in_training(1.0), random_inputs()
    trained = model(inputs)
    assert not torch.allclose(model.eval()(inputs), trained)
    state = torch.get_rng_state()
    model(inputs)
    assert torch.equal(torch.get_rng_state(), state)


def test_activation_checkpointing_draws_the_same_numbers():
    model, inputs = in_training(0.5), random_inputs()
    parameters, grads = list(model.parameters()), []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        torch.manual_seed(0)
        loss = run(inputs).square().sum()
        grads.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    torch.testing.assert_close(*grads)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_training_masks():
    """In one graph, without a break: the mask is drawn inside it, and nothing is skipped."""
    inputs = random_inputs()
    for rate in (1.0, 0.5):
        model = in_training(rate, num_layers=2, fusion_layer=1)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        first, second = compiled(inputs), compiled(inputs)
        if rate == 1.0:
            torch.testing.assert_close(first, model(inputs))
        else:
            assert not torch.equal(first, second), "the mask is a constant of the graph"


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, on the CPU
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_over_training(randomness):
    model, inputs = in_training(1.0), random_inputs()

    def run(inputs):
        return model({m: x.unsqueeze(0) for m, x in inputs.items()})

    mapped = torch.vmap(run, randomness=randomness)(inputs)
    torch.testing.assert_close(mapped[:, 0], model(inputs))


@pytest.mark.gpu
@ways
def test_the_device_is_not_waited_for(options):
    model = in_training(0.5).cuda().half().set_execution(**options)
    streams = {
        m: torch.randn(64, 8, 64, device="cuda", dtype=torch.float16)
        for m in ("rgb", "spectrogram")
    }

    def run():
        sum(x.sum() for x in model.layers[0](streams, {}).values()).backward()

    run()  # the first pinned allocation may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
