"""The pointing game of AV-Digits: shares of maps that are known."""

import pytest
import torch

from examples.av_digits.pointing import METHODS, SPLITS, block
from examples.av_digits.pointing_game import MEAN, Clips, compare, play
from mbt_fast import MBT, MBTConfig

QUARTERS = torch.arange(4)
CORNERS = [(0, 0), (0, -1), (-1, 0), (-1, -1)]  # that belong to them


def clips_of(interval=((0.1, 0.35),) * 4):
    return Clips({}, QUARTERS, torch.tensor(interval), [])


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (3, 3), (5, 2)])
def test_a_quarter_holds_a_quarter_of_any_grid(grid):
    maps = {"rgb": torch.ones(4, 2, *grid)}
    inside = clips_of().inside(maps)["rgb"]
    torch.testing.assert_close(inside.mean(dim=(1, 2, 3)), torch.full((4,), 0.25))
    torch.testing.assert_close(inside.sum(dim=0), torch.ones(2, *grid))
    corners = [inside[quarter, 0, row, column] for quarter, (row, column) in enumerate(CORNERS)]
    torch.testing.assert_close(torch.stack(corners), torch.ones(4))


def test_a_word_covers_parts_of_patches():
    maps = {"spectrogram": torch.ones(4, 4, 2)}
    inside = clips_of().inside(maps)["spectrogram"]
    torch.testing.assert_close(inside[0, :, 0], torch.tensor([0.6, 0.4, 0.0, 0.0]))
    assert inside[0, :, 1].equal(inside[0, :, 0])


def test_an_even_map_gains_nothing():
    inside = clips_of().inside({"rgb": torch.ones(4, 2, 2, 2)})["rgb"]
    found = compare(torch.full((4, 2, 2, 2), 0.01), inside)
    assert found["mass"] == pytest.approx(0.08)
    assert found["share"] == found["others"] == [0.25, 0.0]
    assert found["gain"] == [0.0, 0.0]
    assert found["uniform"] == 0.25


def test_maps_that_point_at_every_digit_gain_what_others_lack():
    inside = clips_of().inside({"rgb": torch.ones(4, 2, 2, 2)})["rgb"]
    found = compare(0.1 * inside, inside)
    assert found["share"] == found["hits"] == [1.0, 0.0]
    assert found["others"] == [0.0, 0.0], "each digit is in a quarter of its own"


def test_a_map_that_always_points_to_one_place_gains_nothing():
    inside = clips_of().inside({"rgb": torch.ones(4, 1, 2, 2)})["rgb"]
    found = compare(inside[:1].expand(4, -1, -1, -1), inside)
    assert found["share"][0] == found["others"][0] == found["hits"][0] == 0.25
    assert found["gain"] == [0.0, 0.0]
    deviation = torch.tensor([1.0, 0.0, 0.0, 0.0]).std().item()
    assert found["share"][1] == pytest.approx(deviation / 2), "standard error over four clips"


def test_clips_without_mass_are_left_out():
    inside = clips_of().inside({"rgb": torch.ones(4, 1, 2, 2)})["rgb"]
    maps = inside.clone()
    maps[0] = 0
    assert compare(maps, inside)["n"] == 3
    assert compare(torch.zeros_like(maps), inside) == {"mass": 0.0, "n": 0}


@pytest.fixture(scope="module")
def played():
    """The game of an untrained model."""
    torch.manual_seed(0)
    config = MBTConfig(
        input_size={"rgb": (2, 24, 24), "spectrogram": (64, 32)},
        patch_size={"rgb": (1, 12, 12), "spectrogram": (8, 16)},
        hidden_size=32,
        num_layers=3,
        num_heads=2,
        mlp_dim=32,
        fusion_layer=1,
        num_classes=4,
    )
    model = MBT(config).eval()
    torch.nn.init.normal_(model.head.weight)
    inputs = {"rgb": torch.randn(8, 3, 2, 24, 24), "spectrogram": torch.randn(8, 64, 32)}
    interval = torch.tensor([[0.25, 0.75]] * 8)
    return play(model, ["a", "b"], Clips(inputs, torch.arange(8) % 4, interval, ["a", "b"] * 4))


def test_every_method_and_classifier_looks_at_picture_and_sound(played):
    assert 0 <= played["accuracy"] <= 1
    for method in METHODS[:2]:
        assert list(played[method]) == [MEAN, "rgb", "spectrogram"]
        for maps in played[method].values():
            assert maps["rgb"]["uniform"] == 0.25
            assert maps["spectrogram"]["uniform"] == 0.5
            assert all(0 < found["share"][0] < 1 for found in maps.values())


def test_the_block_shows_means_over_seeds_for_each_kind_of_speakers(played):
    rows = [
        {"task": "sum", "model": "bottleneck-2", "seed": seed, "split": split} | played
        for seed in (0, 1)
        for split in SPLITS
    ]
    share, right = 100 * played["rollout"][MEAN]["rgb"]["share"][0], 100 * played["accuracy"]
    _, _, line, *_ = block(rows).splitlines()
    cells = [f"{right:.1f} / {right:.1f}", f"{share:.1f} / {share:.1f}"]
    assert line.split(" | ")[1:4] == ["bottleneck, from layer 2", *cells]
    even = "25.0 / 25.0 of the picture in *sum*, 50.0 / 50.0 of the sound in *sum*."
    assert f"An even map has {even}" in block(rows)
