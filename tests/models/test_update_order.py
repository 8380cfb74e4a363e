"""The asymmetric update (Eq. 10-11), against whole matrices of one example at a time."""

import json
import warnings

import pytest
import torch
from encoder_cases import LAYERS, torch_encoder
from materialised import Materialised, one_example
from model_cases import int32, random_inputs, tiny

from mbt_fast import MBTConfig, fuse

ORDERS = [("rgb", "spectrogram"), ("spectrogram", "rgb")]
orders = pytest.mark.parametrize("order", ORDERS, ids=["rgb first", "sound first"])
LENGTHS = {"rgb": int32(9, 0, 4), "spectrogram": int32(5, 9, 0)}


def stated(model, inputs, lengths):
    """Logits ``[B, K]``."""
    logits = []
    for index in range(3):
        logits.append(Materialised(model, *one_example(inputs, lengths, index)).logits)
    return torch.stack(logits)


@orders
@pytest.mark.parametrize("options", [{}, {"share_encoder": True}, {"fusion_layer": 0}], ids=str)
@pytest.mark.parametrize("cls_only", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all", "padding and absence"])
def test_logits_and_gradients_are_the_stated_ones(order, options, cls_only, lengths):
    model = tiny(update_order=order, **options)
    model.set_execution(cls_only=cls_only)
    inputs = random_inputs()
    expected = stated(model, inputs, lengths)
    actual = model(inputs, lengths)
    torch.testing.assert_close(actual, expected)
    parameters = dict(model.named_parameters())
    results = (
        torch.autograd.grad(x.square().sum(), list(parameters.values()), allow_unused=True)
        for x in (actual, expected)
    )
    for name, ours, theirs in zip(parameters, *results, strict=True):
        if theirs is not None and ours is not None:
            torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_the_order_matters():
    model = tiny()
    inputs = random_inputs()
    logits = [model(inputs)]
    for order in ORDERS:
        other = tiny(update_order=order)
        other.load_state_dict(model.state_dict())
        logits.append(other(inputs))
    differences = [(logits[i] - logits[j]).abs().max() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(differences) > 1e-3


def test_the_last_layer_alone_lets_the_second_read_the_first():
    """With the mean of Eq. 9 it would exchange nothing."""
    model = tiny(fusion_layer=3, update_order=("rgb", "spectrogram"))
    inputs = random_inputs()
    before = model.forward_features(inputs)
    changed = {**inputs, "rgb": torch.randn_like(inputs["rgb"])}
    assert not torch.equal(model.forward_features(changed)["spectrogram"], before["spectrogram"])
    changed = {**inputs, "spectrogram": torch.randn_like(inputs["spectrogram"])}
    assert torch.equal(model.forward_features(changed)["rgb"], before["rgb"])


def test_the_last_layer_alone_is_warned_of():
    with pytest.warns(UserWarning, match="fusion_layer = 3, the last layer, exchanges nothing"):
        model = tiny(fusion_layer=3)
    inputs = random_inputs()
    changed = {**inputs, "rgb": torch.randn_like(inputs["rgb"])}
    before, after = (model.forward_features(x)["spectrogram"] for x in (inputs, changed))
    assert torch.equal(before, after)
    towers = {m: torch_encoder() for m in ("rgb", "spectrogram")}
    with pytest.warns(UserWarning, match="the last layer, exchanges nothing"):
        fuse(towers, LAYERS - 1)


@pytest.mark.parametrize(
    "options",
    [
        {"fusion_layer": 2},
        {"fusion_layer": 3, "fusion": "vanilla"},
        {"fusion_layer": 3, "n_bottlenecks": 0},
        {"fusion_layer": 3, "update_order": ("rgb", "spectrogram")},
        {"fusion_layer": 4},
    ],
    ids=str,
)
def test_nothing_else_is_warned_of(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny(**options)


def test_configuration():
    config = MBTConfig(update_order=["spectrogram", "rgb"])
    assert config.update_order == ("spectrogram", "rgb")
    assert MBTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    old = MBTConfig().to_dict()
    del old["update_order"]
    assert MBTConfig.from_dict(old) == MBTConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_order": ("rgb",)}, r"every modality once \(rgb, spectrogram\), got \('rgb',\)"),
        ({"update_order": ("rgb", "rgb")}, "update_order must name every modality once"),
        ({"update_order": "rgb"}, "update_order must be a tuple of modalities, got 'rgb'"),
        (
            {"update_order": ("rgb", "spectrogram"), "fusion": "vanilla"},
            "update_order must be empty with fusion 'vanilla'",
        ),
    ],
)
def test_bad_orders(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        MBTConfig(**options)
