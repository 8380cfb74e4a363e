"""Decode a media file from given times on, with one thread, and no more of it than is asked for.

More threads would gain nothing where several workers decode, and FFmpeg's pools of threads are
known to hang when a decoder is left before the end of its file (PyAV issues 1849, 1861, 1962).
"""

from collections.abc import Generator, Iterator, Sequence
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

from mbt_fast.data.measure import check_reached, is_one_of
from mbt_fast.data.media import is_of_machine, packets, reason, to_seconds
from mbt_fast.data.probe import Source
from mbt_fast.errors import ClipError

if TYPE_CHECKING:
    from av import AudioFrame, Packet, VideoFrame
    from av.container import InputContainer

    Frame: TypeAlias = VideoFrame | AudioFrame

# Seconds of sound that are decoded before those that are asked for: a decoder needs what came
# before (Opus 80 ms, MP3 up to 0.25 s).
WARM_UP = Fraction(1, 2)
# Seconds that a second seek goes further back if the first one came too late.
_FURTHER_BACK = Fraction(10)
_MOST_FAILURES = 1000  # reads that fail one after the other; then nothing more will come


class _CannotSeekError(Exception):
    """The file has to be read from its beginning."""


class Decoder:
    """Decodes the chosen streams of a file, one at a time, from any time on.

    Args:
        source: The file and its streams.
        tolerate: Skip packets that cannot be decoded, and count them.
    """

    def __init__(self, source: Source, *, tolerate: bool = False) -> None:
        """Open nothing yet."""
        self.skipped = 0
        self._source = source
        self._tolerate = tolerate
        self._container: InputContainer | None = None
        self._untouched = True

    def __enter__(self) -> "Decoder":
        """Be closed at the end of a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._close()

    def frames(self, kind: str, begin: Fraction) -> "Generator[tuple[Fraction, Frame], None, None]":
        """Decode one stream from the last frame on that starts no later than ``begin``, or before.

        Where the file cannot seek so that this frame is met, it is read from its beginning.

        Args:
            kind: ``"video"`` or ``"audio"``.
            begin: A time on the file's clock.

        Yields:
            Time and frame; the times never decrease. A frame without a timestamp follows the one
            before it.

        Raises:
            ClipError: The data is damaged, or ends before the header says.
        """
        damaged = False
        for target in self._targets(kind, begin):
            skipped = self.skipped
            frames = self._decode(kind, target)
            first = None
            try:
                first = next(frames, None)
            except _CannotSeekError:
                pass
            except ClipError:
                if damaged or target is None:  # from further back it would be met again
                    raise
                damaged = True
            latest = max(begin, self._source.starts[kind])
            if target is None or (first is not None and first[0] <= latest):
                if first is not None:
                    yield first
                yield from frames
                return
            self.skipped = skipped  # what follows is read once more

    def _targets(self, kind: str, begin: Fraction) -> Iterator[Fraction | None]:
        """Times to try to seek to, one after the other; ``None`` is the beginning of the file."""
        start = self._source.starts[kind]
        near = begin - WARM_UP if kind == "audio" else begin
        for target in (near, near - _FURTHER_BACK):
            if target > start:
                yield target
        if kind == "video" and near <= start and not self._untouched:
            yield start  # sound cannot go back so: how much of it to drop is told on opening
        yield None

    def _decode(self, kind: str, target: Fraction | None) -> "Iterator[tuple[Fraction, Frame]]":
        """Decode to the end of the stream from where a seek to ``target`` lands."""
        import av

        time = before = None
        for packet in self._packets(kind, target):
            for frame in self._frames_of(packet, time):
                if not isinstance(frame, (av.VideoFrame, av.AudioFrame)):
                    continue
                stamp = to_seconds(frame.pts, frame.time_base)
                if stamp is None and time is not None and before is not None:
                    stamp = time + duration(before)
                elif stamp is None and target is None:
                    stamp = self._source.start
                elif stamp is None:
                    return  # behind a seek it could lie anywhere
                elif time is None and isinstance(frame, av.AudioFrame):
                    stamp = _unrounded(stamp, frame, self._source.starts[kind])
                time, before = stamp if time is None else max(time, stamp), frame
                yield time, frame
        reached = target if time is None or before is None else time + duration(before)
        self._check_end(kind, reached or self._source.start)

    def _check_end(self, kind: str, reached: Fraction) -> None:
        """Refuse a stream whose frames end long before the header says: at ``reached``, or before.

        Raises:
            ClipError: It does.
        """
        stated = self._source.stated.get(kind)
        if stated is not None:
            zero = self._source.start
            check_reached(self._source.media.name, kind, reached - zero, stated - zero)

    def _packets(self, kind: str, target: Fraction | None) -> "Iterator[Packet]":
        name = self._source.media.name
        container = self._open_at(kind, target)
        stream = container.streams[self._source.streams[kind]]
        found = packets(container, stream)
        failures = 0
        while failures < _MOST_FAILURES:
            try:
                packet = next(found)
            except StopIteration:
                return
            except Exception as error:
                if is_of_machine(error):
                    raise
                if not self._tolerate:
                    raise ClipError(f"{name}: damaged ({reason(error)})") from error
                self.skipped += failures == 0  # one place, however often it is tried
                failures += 1
                found = packets(container, stream)
            else:
                failures = 0
                yield packet

    def _frames_of(self, packet: "Packet", time: Fraction | None) -> "Sequence[Frame]":
        try:
            return packet.decode()
        except Exception as error:
            if is_of_machine(error):
                raise
            if self._tolerate:
                self.skipped += 1
                return []
            reached = "" if time is None else f" past {float(time - self._source.start):.2f} s"
            raise ClipError(
                f"{self._source.media.name}: damaged, cannot be decoded{reached} ({reason(error)})"
            ) from error

    def _open_at(self, kind: str, target: Fraction | None) -> "InputContainer":
        """The container where a seek to ``target`` lands, or at its beginning."""
        if self._container is None or (target is None and not self._untouched):
            self._close()
            self._container = self._source.media.open()
            for index in self._source.streams.values():
                self._container.streams[index].codec_context.thread_count = 1
        self._untouched = False
        if target is not None:
            try:
                self._seek(self._container, kind, target)
            except Exception as error:
                raise _CannotSeekError from error
        return self._container

    def _seek(self, container: "InputContainer", kind: str, target: Fraction) -> None:
        if kind == "audio" and is_one_of(container, ("matroska",)):
            # Its index lists the video only: by the sound, all that comes before would be read.
            container.seek(int(target * 1_000_000))
            return
        stream = container.streams[self._source.streams[kind]]
        tick = to_seconds(1, stream.time_base) or Fraction(0)
        container.seek(int(target / tick), stream=stream)

    def _close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None


def _unrounded(stamp: Fraction, frame: "AudioFrame", start: Fraction) -> Fraction:
    """The exact time of a frame of sound, if all before it since ``start`` are as long as it.

    Matroska counts milliseconds, so that what is read from there on was up to 16 samples beside
    what is read from the beginning. Frames of other lengths are seldom found within a tick.
    """
    length, tick = duration(frame), to_seconds(1, frame.time_base)
    exact = start + round((stamp - start) / length) * length
    return exact if tick and abs(exact - stamp) <= tick else stamp


def duration(frame: "Frame") -> Fraction:
    """Seconds that a frame lasts; 0 if the file does not say it of a picture."""
    from av import AudioFrame

    if isinstance(frame, AudioFrame):
        return Fraction(frame.samples, frame.sample_rate)
    return to_seconds(frame.duration, frame.time_base) or Fraction(0)
