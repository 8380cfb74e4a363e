"""Clips of *place* and *where*: pictures are as the labels say, and the voice names one digit."""

import csv
from pathlib import Path

import pytest
import torch

from examples.av_digits.data import CELL, CONTRAST, DIGIT, GREY
from examples.av_digits.digits import RATE, Digits
from examples.av_digits.plan import where_stages
from examples.av_digits.where import NONE, QUARTERS, label_names, write_task
from mbt_fast.data import ClipTransform, Manifest, load_clip
from mbt_fast.data.classes import head_sizes

pytest.importorskip("av", reason="writes clips")
N = 24
HALFWAY = 2 * (GREY + CONTRAST * (DIGIT / CELL) ** 2 / 2) - 1  # from empty to white, in [-1, 1]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Rows and manifest by task. Digits are white squares, and words tones."""
    folder = tmp_path_factory.mktemp("clips")
    tones = [torch.sin(torch.arange(RATE // 4) * (0.1 + 0.05 * digit)) for digit in range(10)]
    digits = {"seen": Digits([torch.ones(1, 8, 8)] * 10, [[tone.numpy()] for tone in tones])}
    found = {}
    for task in ("place", "where"):
        (path,) = write_task(digits, task, folder, {"seen": N})
        with path.open() as file:
            found[task] = list(csv.DictReader(file)), Manifest.read(path)
    return found


@pytest.mark.parametrize("task", ["place", "where"])
def test_quarters_with_a_digit_are_bright_and_the_others_are_not(written, task):
    transform = ClipTransform((2, 24, 24), None, stride=8, min_side=24)
    rows, manifest = written[task]
    for row, entry in zip(rows, manifest, strict=True):
        frames = load_clip(entry.media, transform, n_views=1).inputs["rgb"][0].mean(dim=0)
        quarters = frames.unflatten(2, (2, 12)).unflatten(1, (2, 12)).mean(dim=(0, 2, 4))
        shown = [row[f"labels.{name}"] != NONE for name in QUARTERS]
        assert (quarters.flatten() > HALFWAY).tolist() == shown


def test_the_voice_names_the_digit_of_its_quarter(written):
    rows, _ = written["where"]
    for row in rows:
        digits = [row[f"labels.{name}"] for name in QUARTERS]
        assert len(set(digits)) == 4
        assert NONE not in digits
        assert row["labels.where"] == QUARTERS[int(row["quarter"])]
        assert digits[int(row["quarter"])] == row["labels.spoken"]
        assert 0 <= float(row["spoken_from"]) < float(row["spoken_to"]) <= 0.64
    assert len({row["quarter"] for row in rows}) == 4


def test_pictures_of_place_often_have_fewer_digits_and_no_sound(written):
    rows, manifest = written["place"]
    n_digits = {sum(row[f"labels.{name}"] != NONE for name in QUARTERS) for row in rows}
    assert n_digits == {1, 2, 3, 4}
    clip = load_clip(manifest[0].media, ClipTransform((2, 24, 24), (64, 32), stride=8, min_side=24))
    assert list(clip.inputs) == ["rgb"]


@pytest.mark.parametrize("task", ["place", "where"])
def test_every_label_is_a_class(written, task):
    names = label_names(task)
    targets = written[task][1].targets(names, "multitask")
    assert targets.shape == (N, len(head_sizes(names, "multitask")))
    assert (targets >= 0).all()


def test_where_starts_from_place_and_from_the_sound_of_digit():
    towers, models = where_stages((3,))
    assert [(run.name, run.task) for run in towers] == [
        ("tower-place", "place"),
        ("tower-spectrogram", "digit"),
    ]
    for run in models:
        given = run.arguments(Path("clips"), Path("runs"))
        assert "init.towers.rgb=runs/seed-3/tower-place" in given
        assert "init.towers.spectrogram=runs/seed-3/tower-spectrogram" in given
