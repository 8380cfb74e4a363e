"""Handwritten and spoken digits, split into those for training, choosing settings and testing."""

import io
import tarfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from numpy import float32
from numpy.typing import NDArray
from torch import Tensor

RATE = 16000  # of the model's front end: nothing has to be resampled when clips are read
SPLITS = ("train", "val", "seen", "unseen")
UNSEEN = 2  # speakers of whom nothing is trained on
N_SEEN, N_VAL = 5, 5  # the first recordings of a speaker and digit; FSDD's own test set is 0-4
SHARES = {"test": 0.28, "val": 0.08}  # of the images

# Arrays, because a process is sent thousands of them: for each tensor it would get an open file.
Words = list[NDArray[float32]]


@dataclass(frozen=True)
class Digits:
    """What a split is made of.

    Args:
        images: float32 ``[N, 8, 8]`` in [0, 1], per digit.
        words: Recordings of each digit, ``[samples]`` at 16 kHz and of unit power.
    """

    images: list[Tensor]
    words: list[Words]


def read_digits(speech: Path) -> dict[str, Digits]:
    """The digits of every split; no image and no recording is in two of them but for the tests.

    Both tests have the same images. ``unseen`` has the last speakers of the alphabet, the other
    splits have the others.

    Args:
        speech: The Free Spoken Digit Dataset, a folder or an archive of tar: files that are called
            ``DIGIT_SPEAKER_NUMBER.wav``, at any depth.

    Raises:
        SystemExit: It has no such files.
    """
    words: dict[str, list[Words]] = {split: [[] for _ in range(10)] for split in SPLITS}
    recordings = sorted(_recordings(speech))
    if not recordings:
        raise SystemExit(f"{speech} must hold files such as recordings/7_jackson_32.wav, has none")
    strangers = sorted({speaker for speaker, *_ in recordings})[-UNSEEN:]
    for speaker, digit, number, content in recordings:
        split = "unseen" if speaker in strangers else _split_of(number)
        words[split][digit].append(_samples(content))
    images = _images()
    return {split: Digits(images[split], words[split]) for split in SPLITS}


def _split_of(number: int) -> str:
    if number < N_SEEN:
        return "seen"
    return "val" if number < N_SEEN + N_VAL else "train"


def _recordings(speech: Path) -> Iterator[tuple[str, int, int, bytes]]:
    """Speaker, digit, number and content of each file."""
    for name, content in _files(speech):
        digit, speaker, number = name.removesuffix(".wav").split("_")
        yield speaker, int(digit), int(number), content


def _files(speech: Path) -> Iterator[tuple[str, bytes]]:
    if speech.is_dir():
        yield from ((path.name, path.read_bytes()) for path in speech.rglob("?_*_*.wav"))
        return
    with tarfile.open(speech) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".wav") else None
            if file is not None:
                yield Path(member.name).name, file.read()


def _samples(content: bytes) -> NDArray[float32]:
    """Mono sound of a wave file with 16 bits, at 16 kHz."""
    from scipy.signal import resample

    with wave.open(io.BytesIO(content)) as file:
        rate = file.getframerate()
        pcm = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
    length = round(len(pcm) * RATE / rate)
    sound = torch.from_numpy(resample(pcm.double().numpy(), length)).float()
    samples: NDArray[float32] = (sound / sound.square().mean().sqrt()).numpy()
    return samples


def _images() -> dict[str, list[Tensor]]:
    """The images of every split, by digit; which is where does not depend on anything."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels, digits = torch.from_numpy(data.images).float() / 16, torch.from_numpy(data.target)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    n_test, n_val = (round(SHARES[name] * len(order)) for name in ("test", "val"))
    test, val, train = order.split([n_test, n_val, len(order) - n_test - n_val])
    parts = {"train": train, "val": val, "seen": test, "unseen": test}
    return {
        split: [pixels[part[digits[part] == digit]] for digit in range(10)]
        for split, part in parts.items()
    }
