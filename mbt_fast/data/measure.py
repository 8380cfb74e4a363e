"""Read every packet of a media file, to know when its streams end and whether it is whole."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias

from mbt_fast.data.media import Media, as_clip_error, packets, to_seconds
from mbt_fast.errors import ClipError

if TYPE_CHECKING:
    from av import AudioStream, Packet, VideoStream
    from av.container import InputContainer

    Streams: TypeAlias = Mapping[str, VideoStream | AudioStream]

Span: TypeAlias = tuple[Fraction, Fraction]

# Formats that write down how long they last. Of others, FFmpeg guesses it from the file's size.
STATES_DURATION = frozenset(("mov", "matroska", "avi", "flv", "flac"))
_MISSING_AT_LEAST = Fraction(1, 2)  # seconds; rounding and a codec's padding are far less


def measure(
    media: Media, container: "InputContainer", chosen: "Streams", faults: list[str] | None
) -> "tuple[Streams, dict[str, Span]]":
    """The streams that have packets, and start and end of each.

    Args:
        media: The file.
        container: The file, open, of which nothing has been read.
        chosen: The streams of interest.
        faults: Takes what is missing or damaged; ``None`` refuses such a file.

    Raises:
        ClipError: No stream has packets, or ``faults`` is ``None`` and the file is not whole.
    """
    spans: dict[int, Span] = {}
    intact = True
    with _noted(media.name, faults), as_clip_error(media.name, "damaged"):
        for packet in packets(container):
            if packet.size and not packet.is_discard:
                index = packet.stream.index
                spans[index] = _extend(spans.get(index), packet)
                intact = not packet.is_corrupt
    empty = [kind for kind, stream in chosen.items() if stream.index not in spans]
    with _noted(media.name, None if len(empty) == len(chosen) else faults):
        if empty:
            raise ClipError(f"{media.name}: its {' and its '.join(empty)} stream is empty")
    chosen = {kind: stream for kind, stream in chosen.items() if kind not in empty}
    times = {kind: spans[stream.index] for kind, stream in chosen.items()}
    last = max(end for _, end in spans.values())
    with _noted(media.name, faults):
        _check_complete(media, container, chosen, times, last, intact)
    return chosen, times


@contextmanager
def _noted(name: str, faults: list[str] | None) -> Iterator[None]:
    """Add what goes wrong in the block to ``faults``, or let it through if that is ``None``."""
    try:
        yield
    except ClipError as error:
        if faults is None:
            raise
        faults.append(str(error).removeprefix(f"{name}: "))


def _extend(span: Span | None, packet: "Packet") -> Span:
    """The span of a stream with one more packet, which follows the rest if it has no timestamp."""
    stamp = to_seconds(packet.dts if packet.pts is None else packet.pts, packet.time_base)
    if span is None:
        declared = to_seconds(packet.stream.start_time, packet.stream.time_base)
        start = (stamp if declared is None else declared) or Fraction(0)
        span = (start, start)
    begin = span[1] if stamp is None else stamp
    return span[0], max(span[1], begin + (to_seconds(packet.duration, packet.time_base) or 0))


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
    if is_one_of(container, STATES_DURATION):
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
    if end < should - _MISSING_AT_LEAST:
        times = f"{float(end):.2f} s of {float(should):.2f} s"
        raise ClipError(f"{name}: cut off, the {what} ends at {times}")


def _missing_bytes(media: Media) -> int:
    """How far a wav file falls short of the size in its header, which FFmpeg keeps to itself."""
    head = media.head(8)
    magic, size = head[:4], int.from_bytes(head[4:], "little")
    if magic != b"RIFF" or size in (0, 0xFFFFFFFF):  # a size unknown while writing to a pipe
        return 0
    return max(size + 8 - media.size, 0)


def is_one_of(container: "InputContainer", formats: Iterable[str]) -> bool:
    """Whether FFmpeg's name of the format, which may be several, is among ``formats``."""
    return not set(container.format.name.split(",")).isdisjoint(formats)
