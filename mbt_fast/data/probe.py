"""What a media file holds: its streams, and when they begin and end.

Times are exact fractions of a second on the file's own clock.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias, cast

from mbt_fast.data.media import Media, as_clip_error
from mbt_fast.errors import ClipError

if TYPE_CHECKING:
    from av import AudioStream, Packet, VideoStream
    from av.container import InputContainer
    from av.rational import AVRational

    Streams: TypeAlias = Mapping[str, VideoStream | AudioStream]

KINDS = ("video", "audio")
MISSING_AT_LEAST = Fraction(1, 2)  # seconds; rounding and a codec's padding are far less
Span: TypeAlias = tuple[Fraction, Fraction]

# Formats that write down how long they last. Of others, FFmpeg guesses it from the file's size.
_STATES_DURATION = frozenset(("mov", "matroska", "avi", "flv", "flac"))
# Formats whose end FFmpeg knows without reading the file: from the header or the last timestamp.
_TELLS_END = _STATES_DURATION | {"wav", "ogg", "asf", "mpegts"}

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
    """

    media: Media
    streams: Mapping[str, int]
    formats: Mapping[str, str]
    starts: Mapping[str, Fraction]
    end: Fraction
    stated: Mapping[str, Fraction]

    @property
    def start(self) -> Fraction:
        """When the first stream begins: zero on the clock of the clip."""
        return min(self.starts.values())

    @property
    def duration(self) -> Fraction:
        """Seconds from ``start`` to ``end``."""
        return self.end - self.start


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
    with media.open() as container:
        chosen = _choose(media.name, container, kinds)
        times = None if whole else _stated_times(container, chosen)
        stated: dict[str, Fraction] = {}
        if times is None:
            spans, intact = _measure(media.name, container, tolerate)
            chosen = _without_empty(media.name, chosen, spans, tolerate)
            times = {kind: spans[stream.index] for kind, stream in chosen.items()}
            if not tolerate:
                last = max(end for _, end in spans.values())
                _check_complete(media, container, chosen, times, last, intact)
        else:
            ends = {kind: _stated_end(stream) for kind, stream in chosen.items()}
            stated = {kind: end for kind, end in ends.items() if end is not None}
        return Source(
            media=media,
            streams={kind: stream.index for kind, stream in chosen.items()},
            formats={kind: _describe(stream) for kind, stream in chosen.items()},
            starts={kind: start for kind, (start, _) in times.items()},
            end=max(end for _, end in times.values()),
            stated=stated,
        )


def to_seconds(stamp: int | None, base: "Fraction | AVRational | None") -> Fraction | None:
    """A timestamp in seconds, or ``None`` where the file has none."""
    return None if stamp is None or not base else Fraction(stamp * base)


def _choose(name: str, container: "InputContainer", kinds: Sequence[str]) -> "Streams":
    """The best stream of each kind; audio that belongs to the video is preferred."""
    from av.stream import Disposition

    streams = container.streams
    found: dict[str, VideoStream | AudioStream] = {}
    with as_clip_error(name, "its streams cannot be read"):
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
    if not _is_one_of(container, _TELLS_END):
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


def _measure(
    name: str, container: "InputContainer", tolerate: bool
) -> tuple[dict[int, Span], bool]:
    """Start and end of every stream with packets, and whether the last packet is whole."""
    spans: dict[int, Span] = {}
    intact = True
    try:
        with as_clip_error(name, "damaged"):
            for packet in container.demux():
                if packet.size and not packet.is_discard:
                    index = packet.stream.index
                    spans[index] = _extend(spans.get(index), packet)
                    intact = not packet.is_corrupt
    except ClipError:
        if not tolerate:
            raise
    return spans, intact


def _extend(span: Span | None, packet: "Packet") -> Span:
    """The span of a stream with one more packet, which follows the rest if it has no timestamp."""
    stamp = to_seconds(packet.dts if packet.pts is None else packet.pts, packet.time_base)
    if span is None:
        declared = to_seconds(packet.stream.start_time, packet.stream.time_base)
        start = (stamp if declared is None else declared) or Fraction(0)
        span = (start, start)
    begin = span[1] if stamp is None else stamp
    return span[0], max(span[1], begin + (to_seconds(packet.duration, packet.time_base) or 0))


def _without_empty(
    name: str, chosen: "Streams", spans: Mapping[int, Span], tolerate: bool
) -> "Streams":
    """The streams that have packets.

    Raises:
        ClipError: None has, or one has none and this is not tolerated.
    """
    empty = [kind for kind, stream in chosen.items() if stream.index not in spans]
    if empty and (not tolerate or len(empty) == len(chosen)):
        raise ClipError(f"{name}: its {' and its '.join(empty)} stream is empty")
    return {kind: stream for kind, stream in chosen.items() if kind not in empty}


def _check_complete(
    media: Media,
    container: "InputContainer",
    chosen: "Streams",
    times: Mapping[str, Span],
    last: Fraction,
    intact: bool,
) -> None:
    """Compare the packets with the headers. A container may be silent, or silent on its streams."""
    stated: list[tuple[str, Fraction, Fraction]] = []
    if _is_one_of(container, _STATES_DURATION):
        # Matroska and flv count from zero even if the first timestamp is later.
        stated.append(("file", last, Fraction(container.duration or 0, 1_000_000)))
        for kind, stream in chosen.items():
            start, end = times[kind]
            length = to_seconds(stream.duration, stream.time_base) or Fraction(0)
            stated.append((kind, end, start + length))
    elif container.format.name == "wav" and container.bit_rate:
        missing = Fraction(8 * _missing_bytes(media), container.bit_rate)
        stated.append(("file", last, last + missing))
        intact = True  # FFmpeg calls the end of a file of unknown size corrupt
    for what, end, should in stated:
        check_reached(media.name, what, end, should)
    if stated and not intact:
        raise ClipError(f"{media.name}: cut off or damaged at {float(last):.2f} s")


def check_reached(name: str, what: str, end: Fraction, should: Fraction) -> None:
    """Refuse a file that ends long before its header says.

    Raises:
        ClipError: ``end`` lies that far before ``should``.
    """
    if end < should - MISSING_AT_LEAST:
        times = f"{float(end):.2f} s of {float(should):.2f} s"
        raise ClipError(f"{name}: cut off, the {what} ends at {times}")


def _missing_bytes(media: Media) -> int:
    """How far a wav file falls short of the size in its header, which FFmpeg keeps to itself."""
    head = media.head(8)
    magic, size = head[:4], int.from_bytes(head[4:], "little")
    if magic != b"RIFF" or size in (0, 0xFFFFFFFF):  # a size unknown while writing to a pipe
        return 0
    return max(size + 8 - media.size, 0)


def _is_one_of(container: "InputContainer", formats: Iterable[str]) -> bool:
    return not set(container.format.name.split(",")).isdisjoint(formats)


def _describe(stream: "VideoStream | AudioStream") -> str:
    from av import AudioStream

    name = stream.codec_context.name
    if isinstance(stream, AudioStream):
        channels = stream.layout.nb_channels
        return f"{name}, {stream.sample_rate} Hz, {channels} channel{'s' * (channels > 1)}"
    rate = f", {float(stream.average_rate):g} fps" if stream.average_rate else ""
    return f"{name}, {stream.width}x{stream.height}{rate}"
