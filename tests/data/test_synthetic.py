"""The made data set: how many clips of what kind, and that each modality tells the class."""

import pytest
import torch

from mbt_fast.cli.main import main
from mbt_fast.data import ClipTransform, Manifest, load_clip, read_labels
from mbt_fast.data.synthetic import SyntheticSet
from mbt_fast.errors import ClipError, InputError

pytest.importorskip("av")
pytest.importorskip("numpy")
pytest.importorskip("tqdm")

TRANSFORM = ClipTransform(rgb=(2, 32, 32), spectrogram=(64, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    options = ["--clips", "40", "--classes", "4", "--seconds", "0.7", "--val", "0.5"]
    options += ["--broken", "0.1", "--silent", "0.2"]
    assert main(["data", "synthetic", str(folder), *options]) == 0
    return folder


def clips(path):
    """The clips of a manifest by their row, and the messages about broken ones."""
    loaded, messages = {}, []
    for row, entry in enumerate(Manifest.read(path)):
        try:
            loaded[row] = load_clip(entry.path, TRANSFORM, n_views=1)
        except ClipError as error:
            messages.append(str(error))
    return loaded, messages


@pytest.mark.parametrize("part", ["train", "val"])
def test_shares_of_broken_and_silent_clips(folder, part):
    loaded, messages = clips(folder / f"{part}.csv")
    assert len(messages) == 2  # 0.1 of 20
    assert len(loaded) == 18
    silent = [clip for clip in loaded.values() if "spectrogram" not in clip.inputs]
    assert len(silent) == 4  # 0.2 of 20
    assert all("rgb" in clip.inputs for clip in loaded.values())
    assert all(clip.duration == pytest.approx(0.7, abs=0.04) for clip in loaded.values())
    manifest = Manifest.read(folder / f"{part}.csv")
    assert manifest.class_counts(read_labels(folder / "labels.txt")).tolist() == [5] * 4


@pytest.mark.parametrize("modality", ["rgb", "spectrogram"])
def test_each_modality_tells_the_class(folder, modality):
    """The nearest mean of the training clips names the class of the others."""
    means, right, total = [], 0, 0
    names = read_labels(folder / "labels.txt")
    for part in ("train", "val"):
        targets = Manifest.read(folder / f"{part}.csv").targets(names, "single")
        loaded, _ = clips(folder / f"{part}.csv")
        features, labels = [], []
        for row, clip in loaded.items():
            if modality in clip.inputs:
                axes = (1, 2, 3) if modality == "rgb" else 0
                feature = clip.inputs[modality][0].mean(axes)
                features.append(torch.nn.functional.normalize(feature - feature.mean(), dim=0))
                labels.append(int(targets[row]))
        features, labels = torch.stack(features), torch.tensor(labels)
        if part == "train":
            means = torch.stack([features[labels == k].mean(0) for k in range(4)])
        else:
            nearest = torch.cdist(features, means).argmin(1)
            right, total = int((nearest == labels).sum()), len(labels)
    assert right / total >= 0.9  # chance is 0.25


def test_the_same_seed_gives_the_same_files(tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        options = ["--clips", "2", "--classes", "2", "--seconds", "0.3", "--seed", seed]
        assert main(["data", "synthetic", str(tmp_path / name), *options]) == 0
    a, b, c = ((tmp_path / name / "clips" / "00001.mp4").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "classes must be in 2"),
        ({"clips": 3}, "classes must be in 2"),
        ({"seconds": 0}, "seconds must be"),
        ({"broken": 1.0}, r"broken must be in \[0, 1\)"),
        ({"broken": 0.6, "silent": 0.6}, "must be at most 1"),
    ],
)
def test_impossible_sets(options, message):
    with pytest.raises(InputError, match=message):
        SyntheticSet(**options)


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["data", "synthetic", str(tmp_path / "file")]) == 2
    assert "cannot be made" in capsys.readouterr().err
