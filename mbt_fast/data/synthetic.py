"""A small data set made here: each class is a colour and a tone, both in noise."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbt_fast.data.encode import ClipWriter
from mbt_fast.data.rows import write_rows
from mbt_fast.data.sound import SAMPLE_RATE
from mbt_fast.errors import InputError

FPS = 10
HEIGHT, WIDTH = 48, 64
_LOWEST, _HIGHEST = 250.0, 4000.0  # Hz, of the tones
_JITTER = 0.25  # of the distance of two classes, in colour and in tone
_DISC = 14.0  # radius in pixels


@dataclass(frozen=True)
class SyntheticSet:
    """What to make.

    A clip shows a disc that moves over grey noise, and sounds a tone in white noise. The class sets
    the hue of the disc and the pitch of the tone. Both differ from clip to clip by up to a quarter
    of the distance between classes, and so do brightness, speed, loudness and noise. Either
    modality alone tells the class.

    Args:
        clips: Number of clips in all.
        classes: Number of classes, equally frequent.
        seconds: Length of a clip.
        val: Share of the clips in ``val.csv``; the others are in ``train.csv``.
        broken: Share of the clips that cannot be read, because half of the file is missing; the
            same share of ``train.csv`` and of ``val.csv``.
        silent: Share of the clips without a sound stream, likewise.
        seed: Another seed gives other clips.

    Raises:
        InputError: A value is out of range.
    """

    clips: int = 200
    classes: int = 8
    seconds: float = 2.0
    val: float = 0.2
    broken: float = 0.0
    silent: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        if not 2 <= self.classes <= self.clips:
            raise InputError(f"classes must be in 2 .. clips, got {self.classes}, {self.clips}")
        if not 0.1 <= self.seconds <= 60:
            raise InputError(f"seconds must be in 0.1 .. 60, got {self.seconds}")
        for name in ("val", "broken", "silent"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.broken + self.silent > 1:
            raise InputError(f"broken + silent must be at most 1, got {self.broken + self.silent}")

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return [f"tone-{index}" for index in range(self.classes)]


def write_synthetic(folder: Path, made: SyntheticSet) -> Iterator[tuple[Path, str]]:
    """Write the clips, then ``labels.txt``, ``train.csv`` and ``val.csv``.

    Args:
        folder: Where to; it is made if there is none.
        made: What to make. The same set is made of it every time.

    Yields:
        Each clip after it was written, and whether it is ``"broken"``, ``"silent"`` or ``"whole"``.

    Raises:
        InputError: The folder cannot be written.
    """
    try:
        (folder / "clips").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror})") from error
    parts = _parts(made)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for index in range(made.clips):
        path = folder / "clips" / f"{index:05d}.mp4"
        _write_clip(path, made, index, sound=index not in parts["silent"])
        if index in parts["broken"]:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])  # its index was at the end
        label = made.names[index % made.classes]
        row = {"path": f"clips/{path.name}", "id": path.stem, "labels": [label]}
        rows["val" if index in parts["val"] else "train"].append(row)
        kinds = [kind for kind in ("broken", "silent") if index in parts[kind]]
        yield path, next(iter(kinds), "whole")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in made.names))
    for name, part in rows.items():
        if part:
            write_rows(folder / f"{name}.csv", part, ("path", "id", "labels"))


def _parts(made: SyntheticSet) -> dict[str, set[int]]:
    """Which clips are for validation, broken or silent; the last two in both parts, never both."""
    # The last ones, so that all classes are equally frequent.
    first = made.clips - round(made.val * made.clips)
    parts: dict[str, set[int]] = {"val": set(range(first, made.clips))}
    parts.update(broken=set(), silent=set())
    for begin, end in ((0, first), (first, made.clips)):
        order = torch.randperm(end - begin, generator=_generator(made.seed, -1)).add(begin).tolist()
        broken, silent = (round(share * (end - begin)) for share in (made.broken, made.silent))
        parts["broken"].update(order[:broken])
        parts["silent"].update(order[broken : broken + silent])
    return parts


def _write_clip(path: Path, made: SyntheticSet, index: int, sound: bool) -> None:
    from av import VideoFrame

    generator = _generator(made.seed, index)
    label = index % made.classes
    pictures = _pictures(made, label, generator)
    samples = _sound(made, label, generator)
    with ClipWriter(str(path), audio_codec="aac", preset="ultrafast") as writer:
        writer.begin((WIDTH, HEIGHT), sound)
        for number, picture in enumerate(pictures):
            frame = VideoFrame.from_ndarray(picture.numpy(), format="rgb24")
            writer.add_picture(frame, Fraction(number, FPS), Fraction(1, FPS))
        if sound:
            writer.add_sound(samples)


def _pictures(made: SyntheticSet, label: int, generator: torch.Generator) -> Tensor:
    """uint8 ``[T, HEIGHT, WIDTH, 3]``: a disc that goes round, on noise."""
    hue = (label + _uniform(generator, -_JITTER, _JITTER)) / made.classes
    brightness = _uniform(generator, 0.5, 1.0)
    phase, speed = _uniform(generator, 0, 1), _uniform(generator, -1, 1)
    time = torch.arange(round(made.seconds * FPS)) / FPS
    angle = 2 * math.pi * (phase + speed * time)[:, None, None]
    rows, columns = torch.arange(HEIGHT)[:, None], torch.arange(WIDTH)
    distance = (rows - HEIGHT / 2 - HEIGHT / 6 * angle.sin()).square()
    distance = distance + (columns - WIDTH / 2 - WIDTH / 6 * angle.cos()).square()
    disc = (distance < _DISC**2)[..., None]
    noise = torch.rand((*distance.shape, 1), generator=generator) * _uniform(generator, 0.2, 0.6)
    colour = brightness * torch.tensor(_colour(hue))
    pixels = torch.where(disc, 0.7 * colour + 0.3 * noise, noise)
    return (255 * pixels).round().byte()


def _sound(made: SyntheticSet, label: int, generator: torch.Generator) -> Tensor:
    """float32 ``[samples]``: a tone with two overtones, in white noise."""
    step = math.log(_HIGHEST / _LOWEST) / (made.classes - 1)
    pitch = _LOWEST * math.exp(step * (label + _uniform(generator, -_JITTER, _JITTER)))
    time = torch.arange(round(made.seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * math.pi * (pitch * time + _uniform(generator, 0, 1))
    tone = phase.sin() + 0.3 * (1.5 * phase).sin()
    noise = torch.randn(len(time), generator=generator)
    level = _uniform(generator, 0.05, 0.3)
    return level * (tone + _uniform(generator, 0.1, 0.5) * noise) / 2


def _colour(hue: float) -> Sequence[float]:
    import colorsys

    return colorsys.hsv_to_rgb(hue % 1, 1.0, 1.0)


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _generator(seed: int, index: int) -> torch.Generator:
    """Random numbers of one clip, whatever the others are."""
    return torch.Generator().manual_seed((seed * 1_000_003 + index + 1) % 2**63)
