"""Media files: choose and measure their streams, check that they are whole, and decode them.

Times are exact fractions of a second on the file's own clock.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias, cast

from mbt_fast.errors import ClipError

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream, Packet, VideoFrame, VideoStream
    from av.container import InputContainer

    Streams: TypeAlias = Mapping[str, VideoStream | AudioStream]

KINDS = ("video", "audio")
Span: TypeAlias = tuple[Fraction, Fraction]

# Formats that write down how long they last. Of others, FFmpeg guesses it from the file's size.
_STATES_DURATION = frozenset(("mov", "matroska", "avi", "flv", "flac"))
_MISSING_AT_LEAST = Fraction(1, 2)  # seconds; rounding and a codec's padding are far less
_DRAWS_TEXT = "tty"  # FFmpeg "decodes" any text file into pictures of a terminal


@dataclass(frozen=True)
class Source:
    """A media file whose streams have been chosen and measured.

    Args:
        path: The file.
        streams: Index of the chosen stream per kind, ``"video"`` and ``"audio"``.
        formats: What these streams are, in words.
        start: When the first of them begins.
        end: When the last of them ends.
    """

    path: str
    streams: Mapping[str, int]
    formats: Mapping[str, str]
    start: Fraction
    end: Fraction

    @property
    def duration(self) -> Fraction:
        """Seconds from ``start`` to ``end``."""
        return self.end - self.start


def probe(path: str | os.PathLike[str], kinds: Sequence[str] = KINDS) -> Source:
    """Choose the best stream of each kind and measure them, without decoding.

    Every packet is read, because a header need not tell the length, nor the truth. Pictures
    attached to the file (cover art) are not video.

    Args:
        path: A file in any container that FFmpeg reads.
        kinds: The kinds of use; one that the file lacks is left out of the result.

    Raises:
        ClipError: The file cannot be read, holds none of these kinds, or is cut off.
    """
    path = os.fsdecode(path)
    with _opened(path) as container:
        found = _choose(container)
        chosen = {kind: found[kind] for kind in kinds if kind in found}
        if not chosen:
            has = f"only {' and '.join(found)}" if found else "neither video nor audio"
            raise ClipError(f"{path}: holds {has}, needed is {' or '.join(kinds)}")
        for kind, stream in chosen.items():
            if stream.codec_context is None:
                raise ClipError(f"{path}: there is no decoder for its {kind}")
        spans, whole = _measure(path, container)
        for kind, stream in chosen.items():
            if stream.index not in spans:
                raise ClipError(f"{path}: its {kind} stream is empty")
        _check_complete(path, container, chosen, spans, whole)
        formats = {kind: _describe(stream) for kind, stream in chosen.items()}
        streams = {kind: stream.index for kind, stream in chosen.items()}
    used = [spans[index] for index in streams.values()]
    start, end = min(start for start, _ in used), max(end for _, end in used)
    return Source(path, streams, formats, start, end)


def decode(source: Source) -> "Iterator[tuple[str, Fraction, VideoFrame | AudioFrame]]":
    """Decode the chosen streams once, in the order of the file.

    Args:
        source: The file and its streams.

    Yields:
        The kind, the time and the frame; the times of one kind never decrease. A frame without a
        timestamp follows the one before it.

    Raises:
        ClipError: The data is damaged.
    """
    import av

    kinds = {index: kind for kind, index in source.streams.items()}
    times = dict.fromkeys(source.streams, source.start)
    ends = dict(times)
    with _opened(source.path) as container:
        streams = [container.streams[index] for index in kinds]
        for stream in streams:
            stream.codec_context.thread_type = "AUTO"
        try:
            for packet in container.demux(streams):
                kind = kinds[packet.stream.index]
                for frame in packet.decode():
                    if not isinstance(frame, (av.VideoFrame, av.AudioFrame)):
                        continue
                    stamp = _to_seconds(frame.pts, frame.time_base)
                    times[kind] = max(times[kind], ends[kind] if stamp is None else stamp)
                    ends[kind] = times[kind] + _duration(frame)
                    yield kind, times[kind], frame
        except av.FFmpegError as error:
            reached = float(max(ends.values()) - source.start)
            raise ClipError(
                f"{source.path}: damaged, cannot be decoded past {reached:.2f} s ({error.strerror})"
            ) from error


@contextmanager
def _opened(path: str) -> "Iterator[InputContainer]":
    """Open a local media file for reading.

    Raises:
        ClipError: It is missing or not a media file.
    """
    import av

    _check_file(path)
    try:
        # The prefix keeps FFmpeg from taking a name with a colon for an address.
        container = av.open(f"file:{path}", metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise ClipError(f"{path}: not a readable media file ({error.strerror})") from error
    with container:
        if container.format.name == _DRAWS_TEXT:
            raise ClipError(f"{path}: not a readable media file (it is text)")
        yield container


def _to_seconds(stamp: int | None, base: Fraction | None) -> Fraction | None:
    """A timestamp in seconds, or ``None`` where the file has none."""
    return None if stamp is None or base is None else stamp * base


def _check_file(path: str) -> None:
    if not os.path.exists(path):
        raise ClipError(f"{path}: no such file")
    if not os.path.isfile(path):
        raise ClipError(f"{path}: not a file{' but a directory' if os.path.isdir(path) else ''}")
    if os.path.getsize(path) == 0:
        raise ClipError(f"{path}: the file is empty")


def _choose(container: "InputContainer") -> "Streams":
    """The best stream of each kind; audio that belongs to the video is preferred."""
    from av.stream import Disposition

    streams = container.streams
    chosen: dict[str, VideoStream | AudioStream] = {}
    best_video = cast("VideoStream | None", streams.best("video"))
    best_audio = cast("AudioStream | None", streams.best("audio", related=best_video))
    for kind, ranked in (
        ("video", (best_video, *streams.video)),
        ("audio", (best_audio, *streams.audio)),
    ):
        for stream in ranked:
            if stream is not None and not stream.disposition & Disposition.attached_pic:
                chosen[kind] = stream
                break
    return chosen


def _measure(path: str, container: "InputContainer") -> tuple[dict[int, Span], bool]:
    """Start and end of every stream with packets, and whether the last packet is whole."""
    import av

    spans: dict[int, Span] = {}
    whole = True
    try:
        for packet in container.demux():
            if packet.size and not packet.is_discard:
                index = packet.stream.index
                spans[index] = _extend(spans.get(index), packet)
                whole = not packet.is_corrupt
    except av.FFmpegError as error:
        raise ClipError(f"{path}: damaged ({error.strerror})") from error
    return spans, whole


def _extend(span: Span | None, packet: "Packet") -> Span:
    """The span of a stream with one more packet, which follows the rest if it has no timestamp."""
    stamp = _to_seconds(packet.dts if packet.pts is None else packet.pts, packet.time_base)
    if span is None:
        declared = _to_seconds(packet.stream.start_time, packet.stream.time_base)
        start = (stamp if declared is None else declared) or Fraction(0)
        span = (start, start)
    begin = span[1] if stamp is None else stamp
    return span[0], max(span[1], begin + (_to_seconds(packet.duration, packet.time_base) or 0))


def _check_complete(
    path: str,
    container: "InputContainer",
    chosen: "Streams",
    spans: Mapping[int, Span],
    whole: bool,
) -> None:
    """Compare the packets with the headers. A container may be silent, or silent on its streams."""
    last = max(end for _, end in spans.values())
    stated: list[tuple[str, Fraction, Fraction]] = []
    if not _STATES_DURATION.isdisjoint(container.format.name.split(",")):
        # Matroska and flv count from zero even if the first timestamp is later.
        stated.append(("file", last, Fraction(container.duration or 0, 1_000_000)))
        for kind, stream in chosen.items():
            start, end = spans[stream.index]
            length = _to_seconds(stream.duration, stream.time_base) or Fraction(0)
            stated.append((kind, end, start + length))
    elif container.format.name == "wav" and container.bit_rate:
        missing = Fraction(8 * _missing_bytes(path), container.bit_rate)
        stated.append(("file", last, last + missing))
        whole = True  # FFmpeg calls the end of a file of unknown size corrupt
    for what, end, should in stated:
        if end < should - _MISSING_AT_LEAST:
            times = f"{float(end):.2f} s of {float(should):.2f} s"
            raise ClipError(f"{path}: cut off, the {what} ends at {times}")
    if stated and not whole:
        raise ClipError(f"{path}: cut off or damaged at {float(last):.2f} s")


def _missing_bytes(path: str) -> int:
    """How far a wav file falls short of the size in its header, which FFmpeg keeps to itself."""
    with open(path, "rb") as file:
        magic, size = file.read(4), int.from_bytes(file.read(4), "little")
    if magic != b"RIFF" or size in (0, 0xFFFFFFFF):  # a size unknown while writing to a pipe
        return 0
    return max(size + 8 - os.path.getsize(path), 0)


def _describe(stream: "VideoStream | AudioStream") -> str:
    from av import AudioStream

    name = stream.codec_context.name
    if isinstance(stream, AudioStream):
        channels = stream.layout.nb_channels
        return f"{name}, {stream.sample_rate} Hz, {channels} channel{'s' * (channels > 1)}"
    rate = f", {float(stream.average_rate):g} fps" if stream.average_rate else ""
    return f"{name}, {stream.width}x{stream.height}{rate}"


def _duration(frame: "VideoFrame | AudioFrame") -> Fraction:
    from av import AudioFrame

    if isinstance(frame, AudioFrame):
        return Fraction(frame.samples, frame.sample_rate)
    return _to_seconds(frame.duration, frame.time_base) or Fraction(0)
