"""Averages of weights, against sums by hand."""

import pytest
import torch
from torch import nn

from mbt_fast import create_model
from mbt_fast.train.averaging import Ema, average


def copy(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def shake(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter.float()).to(parameter.dtype))


def test_ema_keeps_its_share_at_each_update():
    model = nn.Linear(3, 2)
    ema, expected = Ema(model, 0.9), copy(model)
    for _ in range(5):
        shake(model)
        ema.update(model)
        expected = {name: 0.9 * v + 0.1 * model.state_dict()[name] for name, v in expected.items()}
    torch.testing.assert_close(ema.state_dict(), expected)


def test_ema_of_bfloat16_weights_moves_by_steps_smaller_than_theirs():
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    ema = Ema(model, 0.999)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(10):
        ema.update(model)
    assert ema.state_dict()["weight"].item() == pytest.approx(2 - 0.999**10)


def test_applied_gives_the_weights_back_after_an_error_too():
    model = create_model("mbt_tiny")
    ema = Ema(model, 0.5)
    first = copy(model)
    shake(model)
    own = copy(model)

    def fail():
        with ema.applied(model):
            for name, value in model.state_dict().items():
                assert torch.equal(value, first[name])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name])


def test_ema_continues_from_its_state_bit_for_bit():
    model = nn.BatchNorm1d(3)
    ema = Ema(model, 0.9)
    shake(model)
    ema.update(model)
    again = Ema(nn.BatchNorm1d(3), 0.9)
    again.load_state_dict({name: value.clone() for name, value in ema.state_dict().items()})
    for _ in range(2):
        shake(model)
        model(torch.randn(4, 3))
        ema.update(model)
        again.update(model)
    for name, value in ema.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert ema.state_dict()["num_batches_tracked"] == 2


def test_average_of_the_last_states():
    model = nn.BatchNorm1d(3)
    states = []
    for _ in range(3):
        shake(model)
        model(torch.randn(4, 3))
        states.append(copy(model))
    mean = average(iter(states))
    for name in ("weight", "bias", "running_mean"):
        expected = torch.stack([state[name].double() for state in states]).mean(0)
        assert torch.equal(mean[name], expected.float())
    assert mean["num_batches_tracked"] == 3
    model.load_state_dict(mean)


def test_average_leaves_its_states_alone():
    state = {"weight": torch.ones(2, dtype=torch.float64)}
    mean = average([state, {"weight": torch.full((2,), 3, dtype=torch.float64)}])
    assert state["weight"].tolist() == [1, 1]
    assert mean["weight"].tolist() == [2, 2]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least one state, got none"):
        average([])
    with pytest.raises(ValueError, match="must be of one model, got 'a' in one of them"):
        average([{"a": torch.ones(1)}, {"b": torch.ones(1)}])
    with pytest.raises(ValueError, match="one model"):
        Ema(nn.Linear(1, 1), 0.5).load_state_dict({})
    with pytest.raises(ValueError, match="decay must be in"):
        Ema(nn.Linear(1, 1), 1.0)
