"""Official configs, key by key."""

import re

import numpy as np
import pytest

from mbt_fast import MBTConfig
from mbt_fast.scenic_config import config_from_scenic, sampled_frames

OFFICIAL = {
    "modality_fusion": ("spectrogram", "rgb"),
    "use_bottleneck": True,
    "test_with_bottlenecks": False,
    "share_encoder": True,
    "n_bottlenecks": 4,
    "fusion_layer": 8,
    "hidden_size": 768,
    "patches": {"size": [16, 12, 2]},
    "attention_config": {"type": "spacetime"},
    "num_heads": 12,
    "mlp_dim": 3072,
    "num_layers": 12,
    "representation_size": None,
    "classifier": "token",
    "attention_dropout_rate": 0.0,
    "dropout_rate": 0.2,
    "stochastic_droplayer_rate": 0.3,
    "temporal_encoding_config": {"method": "3d_conv"},
    "num_classes": 527,
}
SHAPES = {"rgb": (2, 32, 224, 216, 3), "spectrogram": (2, 800, 132, 3)}


def test_every_key_lands_in_its_field():
    assert MBTConfig.from_scenic(OFFICIAL, SHAPES) == MBTConfig(
        modalities=("spectrogram", "rgb"),
        input_size={"rgb": (32, 224, 216), "spectrogram": (800, 132)},
        patch_size={"rgb": (2, 16, 12), "spectrogram": (16, 12)},
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        mlp_dim=3072,
        num_classes=527,
        fusion="bottleneck",
        fusion_layer=8,
        n_bottlenecks=5,
        share_encoder=True,
        stochastic_depth=0.3,
        dropout=0.2,
        test_with_bottlenecks=False,
    )


@pytest.mark.parametrize("classifier", ["gap", "gap_per_modality"])
def test_a_mean_has_no_bottleneck_beyond_the_official_number(classifier):
    values = config_from_scenic({**OFFICIAL, "classifier": classifier}, SHAPES)
    assert values["classifier"] == classifier
    assert values["n_bottlenecks"] == 4


@pytest.mark.parametrize("size", [[16, 12, 2], [16, 12]])
def test_sampled_frames_are_cut_into_patches_one_by_one(size):
    temporal = {"method": "temporal_sampling", "n_sampled_frames": 8}
    changes = {"temporal_encoding_config": temporal, "patches": {"size": size}}
    config = MBTConfig.from_scenic({**OFFICIAL, **changes}, SHAPES)
    assert config.n_sampled_frames == 8
    assert config.patch_size == {"spectrogram": (16, 12), "rgb": (1, 16, 12)}
    assert config.grid("rgb") == (8, 14, 18)


def test_sampled_frames_are_the_official_ones():
    """The official code calls ``arange`` on floats, whose length numpy rounds up."""
    for frames in range(1, 65):
        for count in range(1, frames + 2):
            step = frames / (count + 1) if count < frames else 1
            times = np.arange(step if count < frames else 0, frames, step, dtype=np.float32)
            expected = np.minimum(np.round(times).astype(int), frames - 1)
            assert sampled_frames(frames, count) == tuple(expected), (frames, count)
    assert sampled_frames(32, 4) == (6, 13, 19, 26)
    assert len(sampled_frames(32, 2)) == 3  # one more than asked for


def test_num_classes_under_dataset_configs_is_found():
    config = {key: value for key, value in OFFICIAL.items() if key != "num_classes"}
    config["dataset_configs"] = {"num_classes": 309}
    assert MBTConfig.from_scenic(config, SHAPES).num_classes == 309


def test_batch_dimension_may_be_left_out():
    bare = {modality: shape[1:] for modality, shape in SHAPES.items()}
    assert config_from_scenic(OFFICIAL, bare) == config_from_scenic(OFFICIAL, SHAPES)


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("use_bottleneck", "fusion", "vanilla"),
        ("n_bottlenecks", "n_bottlenecks", 5),
        ("share_encoder", "share_encoder", False),
        ("test_with_bottlenecks", "test_with_bottlenecks", True),
        ("stochastic_droplayer_rate", "stochastic_depth", 0.0),
        ("dropout_rate", "dropout", 0.1),
    ],
)
def test_missing_key_has_the_official_default(key, field, value):
    rest = {k: v for k, v in OFFICIAL.items() if k != key}
    assert config_from_scenic(rest, SHAPES)[field] == value


def test_stochastic_depth_may_be_none():
    values = config_from_scenic({**OFFICIAL, "stochastic_droplayer_rate": None}, SHAPES)
    assert values["stochastic_depth"] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"classifier": "gmp"},
            "classifier must be 'token' or 'gap' or 'gap_per_modality', got 'gmp'",
        ),
        ({"attention_dropout_rate": 0.1}, "attention_dropout_rate must be 0, got 0.1"),
        (
            {"temporal_encoding_config": {"method": "2d_conv"}},
            "method must be '3d_conv' or 'temporal_sampling', got '2d_conv'",
        ),
        (
            {"temporal_encoding_config": {"method": "temporal_sampling"}},
            "temporal_encoding_config.n_sampled_frames must be an integer, got None",
        ),
        (
            {
                "temporal_encoding_config": {
                    "method": "temporal_sampling",
                    "n_sampled_frames": 0,
                }
            },
            "temporal_encoding_config.n_sampled_frames must be at least 1, got 0",
        ),
        (
            {"attention_config": {"type": "factorized_encoder"}},
            "attention_config.type must be 'spacetime', got 'factorized_encoder'",
        ),
        ({"representation_size": 8}, "representation_size must be None, got 8"),
        (
            {"modality_fusion": ["rgb", "flow"]},
            "modality_fusion must name rgb or spectrogram, got 'flow'",
        ),
        ({"patches": {"size": [16, 16]}}, "patches.size must be [height, width, frames], got [16"),
        ({"num_classes": None}, "num_classes must be given in the scenic config, got none"),
        ({"num_classes": "527"}, "num_classes must be an integer, got '527'"),
        ({"n_bottlenecks": None}, "n_bottlenecks must be an integer, got None"),
        ({"dropout_rate": None}, "dropout_rate must be a number, got None"),
        ({"attention_dropout_rate": None}, "attention_dropout_rate must be 0, got None"),
        (
            {"stochastic_droplayer_rate": "0.3"},
            "stochastic_droplayer_rate must be a number, got '0",
        ),
        ({"use_bottleneck": "no"}, "use_bottleneck must be a bool, got 'no'"),
        ({"share_encoder": 0}, "share_encoder must be a bool, got 0"),
        ({"test_with_bottlenecks": None}, "test_with_bottlenecks must be a bool, got None"),
        ({"modality_fusion": "rgb"}, "modality_fusion must be a list of names, got 'rgb'"),
        ({"modality_fusion": 3}, "modality_fusion must be a list of names, got 3"),
        ({"patches": [16, 16, 2]}, "patches must be a mapping, got [16, 16, 2]"),
        ({"patches": {"size": "16x2"}}, "patches.size must be [height, width, frames], got '16x2'"),
        ({"patches": {"size": [16, 16, "2"]}}, "each of patches.size must be an integer, got '2'"),
        ({"temporal_encoding_config": "3d_conv"}, "temporal_encoding_config must be a mapping"),
        ({"attention_config": "spacetime"}, "attention_config must be a mapping, got 'spacetime'"),
    ],
)
def test_unsupported_value_is_named(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config_from_scenic({**OFFICIAL, **change}, SHAPES)


@pytest.mark.parametrize(
    "shapes",
    [
        {"rgb": SHAPES["rgb"]},
        {**SHAPES, "spectrogram": (800, 132)},
        {**SHAPES, "spectrogram": 800},
        {**SHAPES, "spectrogram": None},
        {**SHAPES, "rgb": (2, 3, 32, 224, 216)},
    ],
)
def test_wrong_input_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="input_shapes"):
        config_from_scenic(OFFICIAL, shapes)
