"""The pointing game of AV-Digits: shares of maps that are known."""

import pytest
import torch

from examples.av_digits.pointing import Clips, compare

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
