"""The configuration: round trip, derived sizes, and every contradiction it refuses."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch

from mbt_fast import MBT, MBTConfig, bottleneck_attention, create_model
from mbt_fast.config import MAX_HEAD_DIM, check_modalities


def test_defaults_are_the_papers_mbt_base():
    config = MBTConfig()
    assert config.n_tokens("rgb") == 1569
    assert config.n_tokens("spectrogram") == 401
    assert config.head_dim == 64
    assert config.grid("rgb") == (8, 14, 14)
    assert config.grid("spectrogram") == (50, 8)


def test_json_round_trip():
    config = MBTConfig(fusion="vanilla", share_encoder=True, stochastic_depth=0.3, num_classes=309)
    assert MBTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_one_modality_carries_no_slots():
    assert MBTConfig(modalities=("rgb",)).n_slots == 0
    assert MBTConfig(fusion="vanilla").n_slots == 0
    assert MBTConfig(n_bottlenecks=5).n_slots == 5


def test_sizes_of_other_modalities_are_dropped():
    assert MBTConfig(modalities=("rgb",)).input_size == {"rgb": (8, 224, 224)}


SIZE = {"rgb": (8, 224, 224), "spectrogram": (800, 128)}
BAD = {
    "no modality": ({"modalities": ()}, ValueError, "at least one modality"),
    "twice": ({"modalities": ("rgb", "rgb")}, ValueError, "must differ"),
    "unsized": ({"modalities": ("flow",)}, ValueError, "input_size must name every modality"),
    "a string": (
        {"modalities": "rgb"},
        TypeError,
        "modalities must be a tuple of names, got 'rgb'",
    ),
    "numbers": ({"modalities": (1, 2)}, TypeError, "modalities must be strings, got 1"),
    "a method": ({"modalities": ("keys",)}, ValueError, "like a part of a module, got 'keys'"),
    "no bool": ({"share_encoder": "false"}, TypeError, "share_encoder must be a bool, got 'false'"),
    "no": ({"test_with_bottlenecks": 0}, TypeError, "test_with_bottlenecks must be a bool, got 0"),
    "text": ({"dropout": "0.1"}, TypeError, "dropout must be a number, got '0.1'"),
    "no identifier": (
        {"modalities": ("a.b",), "input_size": {"a.b": (8, 8)}, "patch_size": {"a.b": (4, 4)}},
        ValueError,
        "must be public Python identifiers, got 'a.b'",
    ),
    "size missing": (
        {"input_size": {"rgb": (8, 224, 224)}},
        ValueError,
        "got none for spectrogram",
    ),
    "size no mapping": ({"input_size": (8, 224, 224)}, TypeError, "input_size must be a mapping"),
    "size rank": (
        {"input_size": {**SIZE, "rgb": (224,)}},
        ValueError,
        r"input_size\['rgb'\] must be",
    ),
    "patch rank": ({"patch_size": {**SIZE, "rgb": (16, 16)}}, ValueError, "must have 3 sizes"),
    "patch divides": (
        {"input_size": {**SIZE, "spectrogram": (801, 128)}},
        ValueError,
        "must divide",
    ),
    "float size": ({"input_size": {**SIZE, "rgb": (8, 224.0, 224)}}, TypeError, "must be integers"),
    "float": ({"num_layers": 12.0}, TypeError, "num_layers must be an integer, got 12.0"),
    "bool": ({"n_bottlenecks": True}, TypeError, "n_bottlenecks must be an integer"),
    "negative": ({"n_bottlenecks": -1}, ValueError, "n_bottlenecks must be at least 0, got -1"),
    "zero": ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
    "too late": (
        {"fusion_layer": 13},
        ValueError,
        r"at most num_layers = 12 \(late fusion\), got 13",
    ),
    "heads": ({"num_heads": 7}, ValueError, "num_heads must divide hidden_size = 768, got 7"),
    "wide heads": ({"num_heads": 4}, ValueError, "at most 128 channels, got 768 / 4 = 192"),
    "fusion": (
        {"fusion": "late"},
        ValueError,
        "fusion must be one of bottleneck, vanilla, got 'late'",
    ),
    "depth": (
        {"stochastic_depth": 1.0},
        ValueError,
        r"stochastic_depth must be in \[0, 1\), got 1.0",
    ),
}


@pytest.mark.parametrize(("fields", "error", "message"), BAD.values(), ids=BAD)
def test_bad_fields_are_named(fields, error, message):
    with pytest.raises(error, match=message):
        MBTConfig(**fields)


def test_no_modality_is_named_like_a_part_of_a_layer():
    layer = create_model("mbt_tiny").blocks[0]
    names = {name for name in dir(layer) if not name.startswith("_")} - {"rgb", "spectrogram"}
    assert {"training", "keys", "set_backend"} <= names
    for name in names | {"shared"}:  # of the one block for all modalities
        with pytest.raises(ValueError, match=f"like a part of a module, got '{name}'"):
            check_modalities((name,))


def test_the_widest_head_is_the_attention_ops():
    bottleneck_attention([torch.zeros(1, 2, 3, 1, MAX_HEAD_DIM)], 1)
    with pytest.raises(ValueError, match=f"to {MAX_HEAD_DIM}, got {MAX_HEAD_DIM + 1}"):
        bottleneck_attention([torch.zeros(1, 2, 3, 1, MAX_HEAD_DIM + 1)], 1)


def test_unknown_keys_are_named():
    with pytest.raises(ValueError, match="no field 'depth', 'width'"):
        MBTConfig.from_dict({"width": 3, "depth": 2})


def test_is_hashable_and_cannot_be_changed_inside():
    config = MBTConfig()
    assert hash(config) == hash(MBTConfig()) != hash(MBTConfig(fusion_layer=9))
    for change in (
        lambda sizes: sizes.update(rgb=(1, 2, 3)),
        lambda sizes: sizes.__setitem__("rgb", (1, 2, 3)),
        lambda sizes: sizes.pop("rgb"),
    ):
        with pytest.raises(TypeError, match=r"use MBTConfig\.replace"):
            change(config.input_size)
    with pytest.raises(FrozenInstanceError):
        config.fusion_layer = 3


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
)
def test_copies_are_equal(clone):
    config = MBTConfig(fusion_layer=3)
    assert clone(config) == config
    assert hash(clone(config)) == hash(config)


@pytest.mark.parametrize("name", ["joint", "block", "bottleneck", "backend", "flow"])
def test_ordinary_names_make_a_model(name):
    size = {"rgb": (2, 16, 16), name: (16, 16)}
    config = MBTConfig(
        modalities=("rgb", name),
        input_size=size,
        patch_size=size,
        hidden_size=32,
        num_heads=2,
        num_layers=2,
        fusion_layer=1,
        mlp_dim=32,
    )
    inputs = {"rgb": torch.zeros(1, 3, 2, 16, 16), name: torch.zeros(1, 16, 16)}
    assert MBT(config)(inputs).shape == (1, 527)
