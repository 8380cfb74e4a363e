"""Training clips: windows by seed and place, broken clips replaced, missing modalities absent."""

import pickle

import pytest
import torch

from mbt_fast.data import ClipTransform
from mbt_fast.data.manifest import Manifest
from mbt_fast.train.dataset import ATTEMPTS, TrainingClips, collate_items, draw_window
from mbt_fast.train.order import Key, generator
from mbt_fast.train.sections import AugmentConfig

PATCHES = {"rgb": (1, 16, 16), "spectrogram": (16, 16)}
TRANSFORM = ClipTransform((2, 32, 32), (48, 32), patch_size=PATCHES)


@pytest.fixture
def training(clips):
    def make(manifest="train.csv", **options):
        read = Manifest.read(clips / manifest)
        names, augment = read.label_names(), AugmentConfig(scale=(0.9, 1.33))
        return TrainingClips(read, TRANSFORM, names, "single", augment, seed=5, **options)

    return make


def indices(dataset, readable):
    """Entries that can be read, or that cannot, of the manifest."""
    items = (dataset[Key(0, 0, index)] for index in range(len(dataset)))
    return [index for index, item in enumerate(items) if (not item.broken) is readable]


def test_an_item_is_a_function_of_its_key(training):
    dataset = training()
    index = indices(dataset, readable=True)[0]
    key = Key(2, 7, index)
    first = dataset[key]
    torch.rand(3)  # torch's own generator is not asked
    again = pickle.loads(pickle.dumps(dataset))[key]
    assert first.index == again.index == index
    for modality, tensor in first.clip.inputs.items():
        assert torch.equal(tensor, again.clip.inputs[modality])


def test_a_clip_has_another_window_in_another_place(training):
    dataset = training()
    index = indices(dataset, readable=True)[0]
    one, two = (dataset[Key(epoch, 7, index)].clip for epoch in (0, 1))
    assert one.starts != two.starts or not torch.equal(one.inputs["rgb"], two.inputs["rgb"])


def test_a_broken_clip_is_replaced_by_the_same_clip_each_time(training):
    dataset = training()
    broken = indices(dataset, readable=False)
    assert broken
    first, again = (dataset[Key(0, 3, broken[0])] for _ in range(2))
    assert first.index == again.index
    assert first.index not in broken
    assert first.broken[0].index == broken[0]
    assert "not a readable media file" in first.broken[0].error
    assert first.target == dataset.manifest.target(first.index, dataset.classes)
    others = {dataset[Key(0, position, broken[0])].index for position in range(12)}
    assert len(others) > 1, "the substitute depends on the place"


def test_a_substitute_follows_the_weights(training):
    weights = torch.zeros(16, dtype=torch.float64)
    plain = training()
    good, broken = indices(plain, readable=True), indices(plain, readable=False)
    weights[good[1]] = 1
    dataset = training(weights=weights)
    assert {dataset[Key(0, position, broken[0])].index for position in range(5)} == {good[1]}


def test_reading_ends_when_nothing_can_be_read(training, tmp_path, clips):
    (tmp_path / "gone.csv").write_text("path,labels\ngone.mp4,tone-0\n")
    names = Manifest.read(clips / "train.csv").label_names()
    gone = Manifest.read(tmp_path / "gone.csv")
    dataset = TrainingClips(gone, TRANSFORM, names, "single", AugmentConfig(), seed=5)
    item = dataset[Key(0, 0, 0)]
    assert (item.index, item.clip, len(item.broken)) == (-1, None, ATTEMPTS)
    batch = collate_items([item], mask_padding=False)
    assert not batch.inputs
    assert len(batch.broken) == ATTEMPTS


def test_a_clip_without_sound_is_absent_not_silent(training):
    dataset = training()
    items = [dataset[Key(0, 0, index)] for index in range(len(dataset))]
    silent = [item for item in items if "spectrogram" not in item.clip.inputs]
    assert silent
    batch = collate_items([silent[0], items[indices(dataset, True)[0]]], mask_padding=False)
    assert batch.lengths["spectrogram"][0] == 0
    assert batch.lengths["rgb"][0] == TRANSFORM.n_tokens("rgb")
    assert batch.inputs["rgb"].dtype == torch.uint8


def test_windows_and_crops_are_drawn_in_their_ranges():
    augment = AugmentConfig(scale=(0.9, 1.33))
    drawn = [draw_window(augment, generator(0, index)) for index in range(200)]
    for values in zip(*((p, c.top, c.left) for p, c in drawn), strict=True):
        assert 0 <= min(values) < 0.05
        assert 0.95 < max(values) <= 1
    heights, widths = zip(*((c.height_scale, c.width_scale) for _, c in drawn), strict=True)
    for values in (heights, widths):
        assert 0.9 <= min(values) < 0.92
        assert 1.31 < max(values) <= 1.33
    assert heights != widths


def test_centre_windows_and_crops_are_not_random():
    augment = AugmentConfig(window="centre", crop="centre")
    position, crop = draw_window(augment, generator(0, 1))
    assert (position, crop.top, crop.left) == (0.5, 0.5, 0.5)
    assert (crop.height_scale, crop.width_scale) == (1.0, 1.0)


def test_parts_of_a_batch_are_its_clips_in_order(training):
    dataset = training()
    good = indices(dataset, readable=True)[:4]
    batch = collate_items([dataset[Key(0, 0, index)] for index in good], mask_padding=False)
    parts = batch.split(2)
    assert [part.indices for part in parts] == [good[:2], good[2:]]
    for modality, tensor in batch.inputs.items():
        assert torch.equal(torch.cat([part.inputs[modality] for part in parts]), tensor)
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
