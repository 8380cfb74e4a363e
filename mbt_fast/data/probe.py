"""What a media file holds: its streams, and when they begin and end.

Times are exact fractions of a second on the file's own clock.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias, cast

from mbt_fast.data.measure import STATES_DURATION, Span, is_one_of, measure
from mbt_fast.data.media import Media, as_clip_error, to_seconds
from mbt_fast.data.windows import Segment
from mbt_fast.errors import ClipError

if TYPE_CHECKING:
    from av import AudioStream, VideoStream
    from av.container import InputContainer

    Streams: TypeAlias = Mapping[str, VideoStream | AudioStream]

KINDS = ("video", "audio")
# Formats whose end FFmpeg knows without reading the file: from the header or the last timestamp.
_TELLS_END = STATES_DURATION | {"wav", "ogg", "asf", "mpegts"}
_CLOCK = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Source:
    """A media file whose streams have been chosen and measured.

    Args:
        media: The file.
        streams: Index of the chosen stream per kind, ``"video"`` and ``"audio"``.
        formats: What these streams are, in words.
        starts: When each of them begins.
        end: When the last of them ends.
        stated: When each of them ends by the header, where this has not been compared with the
            packets; kinds whose end no header states are left out.
        faults: What is missing or damaged, where this is tolerated.
    """

    media: Media
    streams: Mapping[str, int]
    formats: Mapping[str, str]
    starts: Mapping[str, Fraction]
    end: Fraction
    stated: Mapping[str, Fraction]
    faults: tuple[str, ...] = ()

    @property
    def start(self) -> Fraction:
        """When the first stream begins: zero on the clock of the clip."""
        return min(self.starts.values())

    @property
    def duration(self) -> Fraction:
        """Seconds from ``start`` to ``end``."""
        return self.end - self.start

    def segment(self, start: float | None, end: float | None) -> Segment:
        """The part of the file between two times from its beginning, as far as there is any.

        Raises:
            ClipError: The file ends before.
        """
        begin = Fraction(start or 0)
        if begin >= self.duration:
            raise ClipError(
                f"{self.media.name}: start must lie before the end of the file, "
                f"{float(self.duration):.2f} s, got {start or 0} s"
            )
        stop = self.duration if end is None else min(Fraction(end), self.duration)
        return Segment(self.start + begin, self.start + stop)


def probe(
    media: Media, kinds: Sequence[str] = KINDS, *, whole: bool = True, tolerate: bool = False
) -> Source:
    """Choose the best stream of each kind and find out its times, without decoding.

    Pictures attached to the file (cover art) are not video.

    Args:
        media: A file in any container that FFmpeg reads.
        kinds: The kinds of use; one that the file lacks is left out of the result.
        whole: Read every packet, because a header need not tell the truth, and check that none is
            missing. Without it packets are read only of formats that do not tell their end.
        tolerate: Take a file that is cut off or damaged as what is left of it.

    Raises:
        ClipError: The file cannot be read, holds none of these kinds, or is cut off.
    """
    stated: dict[str, Fraction] = {}
    faults: list[str] = []
    with ExitStack() as closing, as_clip_error(media.name, "cannot be read"):
        container = closing.enter_context(media.open())
        chosen = _choose(media.name, container, kinds)
        times = None if whole else _stated_times(container, chosen)
        if times is None:
            chosen, times = measure(media, container, chosen, faults if tolerate else None)
        else:
            closing.pop_all()
            media.keep(container)
            if not tolerate and is_one_of(container, STATES_DURATION):
                ends = {kind: _stated_end(stream) for kind, stream in chosen.items()}
                stated = {kind: end for kind, end in ends.items() if end is not None}
        return Source(
            media=media,
            streams={kind: stream.index for kind, stream in chosen.items()},
            formats={kind: _describe(stream) for kind, stream in chosen.items()},
            starts={kind: start for kind, (start, _) in times.items()},
            end=max(end for _, end in times.values()),
            stated=stated,
            faults=tuple(faults),
        )


def _choose(name: str, container: "InputContainer", kinds: Sequence[str]) -> "Streams":
    """The best stream of each kind; audio that belongs to the video is preferred."""
    from av.stream import Disposition

    streams = container.streams
    found: dict[str, VideoStream | AudioStream] = {}
    best_video = cast("VideoStream | None", streams.best("video"))
    best_audio = cast("AudioStream | None", streams.best("audio", related=best_video))
    for kind, ranked in (
        ("video", (best_video, *streams.video)),
        ("audio", (best_audio, *streams.audio)),
    ):
        for stream in ranked:
            if stream is not None and not stream.disposition & Disposition.attached_pic:
                found[kind] = stream
                break
    chosen = {kind: found[kind] for kind in kinds if kind in found}
    if not chosen:
        has = f"only {' and '.join(found)}" if found else "neither video nor audio"
        raise ClipError(f"{name}: holds {has}, needed is {' or '.join(kinds)}")
    for kind, stream in chosen.items():
        if stream.codec_context is None:
            raise ClipError(f"{name}: there is no decoder for its {kind}")
    return chosen


def _stated_times(container: "InputContainer", chosen: "Streams") -> dict[str, Span] | None:
    """Start and end of each stream as the file tells them, or ``None`` where it does not."""
    if not is_one_of(container, _TELLS_END):
        return None
    # Matroska and flv count from zero even if the first timestamp is later.
    last = Fraction(container.duration or 0, 1_000_000)
    times = {}
    for kind, stream in chosen.items():
        start = to_seconds(stream.start_time, stream.time_base) or Fraction(0)
        end = _stated_end(stream) or last
        if end <= start:
            return None
        times[kind] = (start, end)
    return times


def _stated_end(stream: "VideoStream | AudioStream") -> Fraction | None:
    """When one stream ends by the header, which may know the end of the file only."""
    length = to_seconds(stream.duration, stream.time_base)
    if length:
        return (to_seconds(stream.start_time, stream.time_base) or Fraction(0)) + length
    clock = _CLOCK.fullmatch(stream.metadata.get("DURATION", ""))  # what Matroska has instead
    if clock is None:
        return None
    hours, minutes, seconds = map(Fraction, clock.groups())
    return 3600 * hours + 60 * minutes + seconds


def _describe(stream: "VideoStream | AudioStream") -> str:
    from av import AudioStream

    name = stream.codec_context.name
    if isinstance(stream, AudioStream):
        channels = stream.layout.nb_channels
        return f"{name}, {stream.sample_rate} Hz, {channels} channel{'s' * (channels > 1)}"
    rate = f", {float(stream.average_rate):g} fps" if stream.average_rate else ""
    return f"{name}, {stream.width}x{stream.height}{rate}"
