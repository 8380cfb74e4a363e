"""A last layer for the CLS rows alone: the same results, and the work is really left out."""

import pytest
import torch
from backends import OwnCalls, kernels_of
from model_cases import (
    FUSIONS,
    assert_results_unchanged,
    changes,
    fusions,
    lengths,
    random_inputs,
    tiny,
)

ON, OFF = {"cls_only": True}, {"cls_only": False}


@fusions
@lengths
@pytest.mark.parametrize("training", [False, True])
def test_it_changes_no_result(fusion, lengths, training):
    model = tiny(**fusion).train(training)
    assert_results_unchanged(model, random_inputs(), lengths, ON, OFF)


@pytest.mark.parametrize("fusion", ["bottleneck", "late"])
def test_unimodal_layers(fusion):
    """Where the layers run unimodally at test time, and with one modality alone."""
    model, inputs = tiny(**FUSIONS[fusion], test_with_bottlenecks=False), random_inputs()
    assert_results_unchanged(model, inputs, None, ON, OFF)
    assert_results_unchanged(model, {"rgb": inputs["rgb"]}, None, ON, OFF)


@pytest.mark.parametrize("fusion", [FUSIONS[name] for name in FUSIONS if name != "in order"])
def test_the_last_layer_returns_the_cls_rows_alone(fusion):
    """All tokens are there for a hook where the option is off."""
    model, inputs, seen = tiny(**fusion), random_inputs(), []
    model.layers[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    for options in (ON, OFF):
        model.set_execution(**options)(inputs)
    cls, full = seen
    ends = {"shared": [0, 9]} if "shared" in full else {"rgb": [0], "spectrogram": [0]}
    for name, rows in ends.items():
        assert full[name].shape[1] >= 9
        torch.testing.assert_close(cls[name], full[name][:, rows])


@pytest.mark.parametrize("backend", kernels_of("residual_add"))
def test_slots_are_not_shared_after_the_last_layer(backend):
    model, inputs = tiny().float().set_backend(backend), random_inputs(dtype=torch.float32)
    for options, count in ((ON, 1), (OFF, 2)):  # of the two fused layers
        with OwnCalls() as own:
            model.set_execution(**options)(inputs)
        assert own.names.count("residual_add_fwd") == count


def test_dropout_draws_the_same_numbers():
    model, inputs, results = tiny(dropout=0.3).train(), random_inputs(), []
    for options in (ON, OFF):
        torch.manual_seed(1)
        results.append(model.set_execution(**options)(inputs))
    assert torch.equal(*results)


@changes
@pytest.mark.parametrize("fusion", ["bottleneck", "vanilla", "vanilla, shared"])
def test_a_replaced_projection_is_called(fusion, change):
    """Its weights are not used in its place."""
    model, inputs = tiny(**FUSIONS[fusion]).set_execution(**ON), random_inputs()
    before = model(inputs)
    for block in model.layers[-1].values():
        block.attn.qkv = change(block.attn.qkv)
    after = model(inputs)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, model.set_execution(**OFF)(inputs))


@pytest.mark.parametrize("backend", kernels_of("bottleneck_attention"))
def test_a_kernel_without_dense_attention_leaves_few_queries_to_torch(backend):
    model = tiny().float().set_backend(backend)
    stream = torch.randn(2, 9, 64, device=model.norm.weight.device)
    out = model.layers[-1]({"rgb": stream}, {}, n_slots=4, rows=[0])
    assert out["rgb"].shape == (2, 1, 64)
