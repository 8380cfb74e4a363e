"""Groups of parameters, and the learning rate of the official code."""

import math

import pytest
import torch
from torch import nn

from mbt_fast import create_model, fuse
from mbt_fast.train.loop_section import LoopConfig
from mbt_fast.train.optimizer import build, schedule, set_lr

LAYERS = 4  # of mbt_tiny


def config(**changes):
    return LoopConfig(**{"task": "single", "steps": 100, "batch_size": 1, "lr": 0.5} | changes)


def options_of(model, **changes):
    """(learning rate, weight decay) of each parameter, by name."""
    optimizer, _ = build(model, config(**changes), 100)
    return {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }


def towers():
    layer = nn.TransformerEncoderLayer(
        32, nhead=2, dim_feedforward=64, dropout=0.0, norm_first=True, batch_first=True
    )
    return fuse(
        {
            m: nn.TransformerEncoder(layer, 3, nn.LayerNorm(32), enable_nested_tensor=False)
            for m in ("rgb", "spectrogram")
        },
        fusion_layer=2,
    )


@pytest.mark.parametrize("make", [lambda: create_model("mbt_tiny"), towers])
def test_every_parameter_is_trained_once(make):
    model = make()
    optimizer, _ = build(model, config(weight_decay=0.1, layer_decay=0.75), 100)
    given = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(given) == len(set(map(id, given))) == len(list(model.parameters()))


def test_only_weights_of_linear_maps_decay():
    decays = {name: decay for name, (_, decay) in options_of(
        create_model("mbt_tiny"), weight_decay=0.1, optimizer="adamw").items()}  # fmt: skip
    free = {name.rsplit(".", 1)[-1] for name, decay in decays.items() if not decay}
    assert free == {"bias", "weight", "cls_token", "pos_embed", "bottleneck_tokens"}
    for name, decay in decays.items():
        if name.endswith("weight"):
            assert (decay == 0) == ("norm" in name), name


def test_decay_of_fused_encoders_spares_what_has_one_dimension():
    model = towers()
    decays = options_of(model, weight_decay=0.1)
    shapes = {name: p.ndim for name, p in model.named_parameters()}
    assert all(
        (decay > 0) == (shapes[name] == 2 and name.endswith("weight"))
        for name, (_, decay) in decays.items()
    )


def test_learning_rates_fall_with_depth():
    rates = {name: rate for name, (rate, _) in options_of(
        create_model("mbt_tiny"), layer_decay=0.5).items()}  # fmt: skip
    assert rates["head.weight"] == rates["norm.bias"] == rates["bottleneck_tokens"] == 0.5
    for layer in range(LAYERS):
        assert rates[f"blocks.{layer}.rgb.mlp.fc1.weight"] == 0.5 * 0.5 ** (LAYERS - layer)
    for name in ("cls_token", "pos_embed", "proj.weight"):
        assert rates[f"embed.spectrogram.{name}"] == 0.5 * 0.5 ** (LAYERS + 1)


def test_learning_rates_of_fused_encoders_fall_with_depth():
    rates = options_of(towers(), layer_decay=0.5)
    assert rates["towers.rgb.layers.0.linear1.weight"][0] == 0.5 * 0.5**3
    assert rates["towers.rgb.norm.weight"][0] == rates["bottleneck_tokens"][0] == 0.5


def test_frozen_parameters_are_left_out():
    model = create_model("mbt_tiny")
    model.embed.requires_grad_(False)
    assert not [name for name in options_of(model) if name.startswith("embed")]
    with pytest.raises(ValueError, match="requires gradients, got none"):
        build(model.requires_grad_(False), config(), 100)


def test_layer_decay_needs_layers():
    with pytest.raises(ValueError, match="layer_decay must be 1 for a model without"):
        build(nn.Linear(2, 2), config(layer_decay=0.75), 100)


def test_sgd_steps_as_the_official_momentum():
    weight = nn.Linear(3, 2, bias=False)
    optimizer, _ = build(weight, config(lr=0.1), 10)
    expected, velocity = weight.weight.detach().clone(), torch.zeros(2, 3)
    for _ in range(3):
        weight.weight.grad = torch.randn(2, 3)
        velocity = 0.9 * velocity + weight.weight.grad
        expected = expected - 0.1 * velocity
        optimizer.step()
    torch.testing.assert_close(weight.weight.detach(), expected)


def test_schedule_of_audioset_mini():
    """15,900 steps, 795 of warm-up, by the formulas of the official configuration."""
    factor = schedule("cosine", 15900, 795.0)
    assert factor(0) == 0
    assert factor(795) == 1
    assert factor(15900) == 0
    for step in (1, 100, 794, 796, 8347, 15899):
        warm = min(1.0, step / 795)
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - 795) / (15900 - 795)))
        assert factor(step) == pytest.approx(warm * cosine)


def test_constant_schedule_warms_up_and_stays():
    factor = schedule("constant", 10, 4)
    assert [factor(step) for step in (0, 1, 4, 9, 10)] == [0, 0.25, 1, 1, 1]


def test_warm_up_may_take_the_whole_run():
    factor = schedule("cosine", 4, 4)
    assert [factor(step) for step in range(4)] == [0, 0.25, 0.5, 0.75]


def test_set_lr_keeps_the_ratios_of_groups():
    optimizer, factor = build(create_model("mbt_tiny"), config(layer_decay=0.5), 100)
    before = [group["lr"] for group in optimizer.param_groups]
    for step in (0, 50, 25):
        set_lr(optimizer, factor(step))
        assert [g["lr"] for g in optimizer.param_groups] == [factor(step) * lr for lr in before]
