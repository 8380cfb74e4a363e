"""What the clips of a manifest are: which can be read, how long they are, what they lack."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from mbt_fast.data.classes import PREFIX
from mbt_fast.data.decode import Decoder
from mbt_fast.data.manifest import Entry
from mbt_fast.data.media import Media
from mbt_fast.data.probe import probe
from mbt_fast.errors import ClipError


@dataclass(frozen=True)
class Examined:
    """What is found of one clip.

    Args:
        id: Its id.
        classes: Its labels, or its verb and noun.
        seconds: How long it is; 0 if it is broken.
        formats: The streams it has, in words, by kind: ``"video"`` and ``"audio"``.
        error: Why it cannot be read; ``None`` if it can.
    """

    id: str
    classes: tuple[str, ...]
    seconds: float
    formats: Mapping[str, str]
    error: str | None = None


def examine(entry: Entry) -> Examined:
    """Decode all of a clip, and nothing of its file before or after it."""
    pairs = (("verb", entry.verb), ("noun", entry.noun))
    classes = entry.labels + tuple(f"{PREFIX[kind]}{name}" for kind, name in pairs if name)
    try:
        seconds, formats = _decode_all(entry)
    except ClipError as error:
        return Examined(entry.id, classes, 0.0, {}, str(error))
    return Examined(entry.id, classes, float(seconds), formats)


def _decode_all(entry: Entry) -> tuple[Fraction, Mapping[str, str]]:
    source = probe(Media(entry.media), whole=entry.end is None)
    begin = source.start + Fraction(entry.start or 0)
    end = source.end if entry.end is None else source.start + Fraction(entry.end)
    end = min(end, source.end)
    if begin >= end:
        length = float(source.duration)
        raise ClipError(f"{source.media.name}: ends at {length:.2f} s, before the clip begins")
    with Decoder(source) as decoder:
        for kind in source.streams:
            frames = 0
            for time, _ in decoder.frames(kind, begin):
                frames += 1
                if time >= end:
                    break
            if not frames:
                raise ClipError(f"{source.media.name}: no {kind} could be decoded")
    return end - begin, source.formats


@dataclass
class Survey:
    """What is found of a whole manifest.

    Args:
        clips: Number of clips.
        seconds: Length of all that can be read.
        broken: Why each other clip cannot be read, by id.
        without: Ids of the clips that lack a kind of stream, ``"video"`` or ``"audio"``.
        found: Number of readable clips of each class.
        lost: Number of broken clips of each class.
        formats: Number of clips in each format, by kind.
    """

    clips: int = 0
    seconds: float = 0.0
    broken: dict[str, str] = field(default_factory=dict)
    without: dict[str, list[str]] = field(default_factory=lambda: {"video": [], "audio": []})
    found: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    formats: dict[str, Counter[str]] = field(
        default_factory=lambda: {"video": Counter(), "audio": Counter()}
    )

    def add(self, clip: Examined) -> None:
        """Count one clip."""
        self.clips += 1
        if clip.error is not None:
            self.broken[clip.id] = clip.error
            self.lost.update(clip.classes)
            return
        self.seconds += clip.seconds
        self.found.update(clip.classes)
        for kind, missing in self.without.items():
            if kind in clip.formats:
                self.formats[kind][clip.formats[kind]] += 1
            else:
                missing.append(clip.id)

    def as_record(self) -> dict[str, Any]:
        """All of it, for JSON; classes and formats by name."""
        return {
            "clips": self.clips,
            "seconds": round(self.seconds, 3),
            "broken": self.broken,
            "without": self.without,
            "classes": {
                name: {"clips": self.found[name], "broken": self.lost[name]}
                for name in sorted({*self.found, *self.lost})
            },
            "formats": {
                kind: dict(sorted(counts.items())) for kind, counts in self.formats.items()
            },
        }
