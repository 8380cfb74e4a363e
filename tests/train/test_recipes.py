"""The recipes that come with the package: each value has its source, and adds up to the paper's."""

import re

import pytest
import torch

from mbt_fast.flops import forward_flops
from mbt_fast.models import MBT
from mbt_fast.train import start
from mbt_fast.train.config import RECIPES, TrainConfig, recipe_names

MARKS = ("paper", "released config", "AV-MAE", "ours")
# Clips and classes of the paper, and steps and warm-up of 50 epochs of whole batches of 64 and of
# 2.5. Of Epic-Kitchens, Moments in Time and Kinetics-Sounds it does not state them all: as in
# scenic's configs for ViViT, the published lists, and any number.
SIZES = {
    "audioset_mini": (20_361, 527, 15_900, 795),
    "audioset_500k": (508_994, 527, 397_650, 19_882.5),
    "vggsound": (172_427, 309, 134_700, 6_735),
    "kinetics400": (209_552, 400, 163_700, 8_185),
    "epic_kitchens": (67_217, 97 + 300, 52_500, 2_625),
    "moments_in_time": (800_000, 339, 625_000, 31_250),
    "kinetics_sounds": (20_000, 36, 15_600, 780),
}
TASKS = {
    "audioset_mini": "multilabel",
    "audioset_500k": "multilabel",
    "epic_kitchens": "verb_noun",
}


def config_of(name):
    config = TrainConfig.from_toml(name)
    return config, config.model.mbt(SIZES[name][1])


def expected_gflops(frames_patches, sound_patches, classes):
    """MBT-B with five bottleneck tokens from layer 8 on, written anew: 2 per multiply-add."""
    width, mlp, total = 768, 3072, 0
    for patches in (frames_patches, sound_patches):
        for layer in range(12):
            n = 1 + patches + (5 if layer >= 8 else 0)
            total += 8 * n * width**2 + 4 * n * width * mlp + 4 * n * n * width
        total += 2 * width * classes
    return total


def test_every_recipe_has_its_sizes_here():
    assert set(recipe_names()) - {"tutorial"} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_every_value_says_where_it_comes_from(name):
    lines = (RECIPES / f"{name}.toml").read_text().splitlines()
    values = [line for line in lines if re.match(r"\w.*=", line)]
    marks = "|".join(MARKS)
    assert len(values) > 30
    assert [line for line in values if not re.search(rf"# ({marks})(: .+)?$", line)] == []


@pytest.mark.parametrize("name", SIZES)
def test_steps_and_warm_up_are_those_of_the_official_code(name):
    config, _ = config_of(name)
    clips, _, steps, warmup = SIZES[name]
    assert config.train.total_steps(clips) == steps
    assert config.train.total_warmup_steps(clips) == warmup
    assert config.train.task == TASKS.get(name, "single")


@pytest.mark.parametrize("name", SIZES)
def test_model_is_the_base_model_with_five_bottlenecks_from_layer_eight(name):
    config, model = config_of(name)
    assert config.model.num_classes in (None, SIZES[name][1])
    assert (model.hidden_size, model.num_layers, model.fusion_layer) == (768, 12, 8)
    assert model.n_slots == 5
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in MBT(model).parameters())
    head = 769 * (model.num_classes - 527)
    rows = sum(model.n_tokens(m) for m in model.modalities) - (3137 + 401)
    stem = 3 * 16 * 16 * (model.patch_size["rgb"][0] - 2)
    assert count == 175_009_295 + head + 768 * (rows + stem)  # of the released checkpoints


@pytest.mark.parametrize("name", SIZES)
def test_flops_are_those_of_its_tokens(name):
    _, model = config_of(name)
    frames, sound = (model.n_tokens(m) - 1 for m in ("rgb", "spectrogram"))
    pixels = sum(torch.tensor(model.input_size[m]).prod().item() for m in model.modalities)
    stem = 2 * 3 * pixels * 768
    expected = expected_gflops(frames, sound, model.num_classes) + stem
    assert forward_flops(model).total == expected


def test_flops_of_audioset_mini_are_those_of_the_released_checkpoints():
    _, model = config_of("audioset_mini")
    assert round(forward_flops(model).total / 1e9, 2) == 978.57


@pytest.mark.parametrize("name", SIZES)
def test_sound_lasts_as_long_as_the_recipe_says(name):
    config, model = config_of(name)
    transform = start.clip_transform(config, model)
    seconds = {"epic_kitchens": 1.28, "moments_in_time": 2.88}.get(name, 8)
    frames = {"epic_kitchens": 1.28, "vggsound": 8}.get(name, 2.56)
    assert transform.spectrogram[0] / 100 == seconds
    assert transform.rgb[0] * transform.stride / transform.fps == frames
