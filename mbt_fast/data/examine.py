"""Decode a clip from end to end, and see whether there is anything to see and to hear."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from mbt_fast.data.classes import class_name
from mbt_fast.data.decode import Decoder
from mbt_fast.data.entry import Entry
from mbt_fast.data.media import Media
from mbt_fast.data.probe import Source, probe
from mbt_fast.data.sound import MonoSound
from mbt_fast.data.windows import Segment
from mbt_fast.errors import ClipError

if TYPE_CHECKING:
    from av import AudioFrame, VideoFrame

_QUIET = 1e-4  # of full scale, -80 dB: below it a sound is none
_SIDE = 16  # pixels of the pictures that are compared
_ALIKE = 2  # of 255, by which compression changes a picture that stands still
_LOOK_EVERY = Fraction(1, 2)  # seconds


@dataclass(frozen=True)
class Examined:
    """What is found of one clip.

    Args:
        id: Its id.
        classes: Its labels, its verb and noun, and those of heads, as a list of classes calls them.
        seconds: How long it is; 0 if it is broken.
        formats: The streams it has, in words, by kind: ``"video"`` and ``"audio"``.
        still: It has pictures, and all are the same.
        muted: It has a sound stream, and nothing is heard.
        error: Why it cannot be read; ``None`` if it can.
    """

    id: str
    classes: tuple[str, ...]
    seconds: float = 0.0
    formats: Mapping[str, str] = field(default_factory=dict)
    still: bool = False
    muted: bool = False
    error: str | None = None


def examine(entry: Entry) -> Examined:
    """Decode all of a clip, and nothing of its file before or after it."""
    pairs = [("verb", entry.verb), ("noun", entry.noun)]
    pairs += [(head, label) for head, labels in entry.heads.items() for label in labels]
    classes = entry.labels + tuple(class_name(head, label) for head, label in pairs if label)
    try:
        with open_clip(entry) as (source, segment):
            still = "video" in source.streams and _is_still(source, segment)
            muted = "audio" in source.streams and _is_muted(source, segment)
    except ClipError as error:
        return Examined(entry.id, classes, error=str(error))
    return Examined(entry.id, classes, float(segment.duration), source.formats, still, muted)


@contextmanager
def open_clip(entry: Entry) -> Iterator[tuple[Source, Segment]]:
    """The file of a row, and the part of it that is the clip.

    Raises:
        ClipError: The file cannot be read, is cut off, or ends before the clip begins.
    """
    with Media(entry.media) as media:
        source = probe(media, whole=entry.end is None)
        yield source, source.segment(entry.start, entry.end)


def _is_still(source: Source, segment: Segment) -> bool:
    """Decode all pictures; compare some."""
    first: Tensor | None = None
    moved, look_at = False, segment.start
    with Decoder(source) as decoder:
        for time, frame in decoder.frames("video", segment.start):
            if time >= segment.end:
                break
            if first is None or (time >= look_at and not moved):
                small = _thumbnail(cast("VideoFrame", frame))
                first = small if first is None else first
                moved = bool((small - first).abs().max() > _ALIKE)
                look_at = time + _LOOK_EVERY
    if first is None:
        raise ClipError(f"{source.media.name}: no video could be decoded")
    return not moved


def _thumbnail(frame: "VideoFrame") -> Tensor:
    small = frame.reformat(_SIDE, _SIDE, format="gray", interpolation="AREA")
    return torch.from_numpy(small.to_ndarray()).int()


def _is_muted(source: Source, segment: Segment) -> bool:
    """Decode all sound, and hear it as a model does."""
    mono = MonoSound()
    loudest = 0.0

    def level(pieces: Iterable[tuple[int, Tensor]]) -> float:
        return max((piece.abs().max().item() for _, piece in pieces if len(piece)), default=0.0)

    with Decoder(source) as decoder:
        for time, frame in decoder.frames("audio", segment.start):
            if time >= segment.end:
                break
            loudest = max(loudest, level(mono.push(time, cast("AudioFrame", frame))))
        loudest = max(loudest, level(mono.flush()))
    if not mono.came:
        raise ClipError(f"{source.media.name}: no audio could be decoded")
    return loudest < _QUIET
