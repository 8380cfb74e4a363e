"""The frames of a media file, decoded once and in order."""

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from mbt_fast.data.probe import Source, opened, to_seconds
from mbt_fast.errors import ClipError

if TYPE_CHECKING:
    from av import AudioFrame, VideoFrame


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
    with opened(source.path) as container:
        streams = [container.streams[index] for index in kinds]
        for stream in streams:
            stream.codec_context.thread_type = "AUTO"
        try:
            for packet in container.demux(streams):
                kind = kinds[packet.stream.index]
                for frame in packet.decode():
                    if not isinstance(frame, (av.VideoFrame, av.AudioFrame)):
                        continue
                    stamp = to_seconds(frame.pts, frame.time_base)
                    times[kind] = max(times[kind], ends[kind] if stamp is None else stamp)
                    ends[kind] = times[kind] + _length(frame)
                    yield kind, times[kind], frame
        except av.FFmpegError as error:
            reached = float(max(ends.values()) - source.start)
            raise ClipError(
                f"{source.path}: damaged, cannot be decoded past {reached:.2f} s ({error.strerror})"
            ) from error


def _length(frame: "VideoFrame | AudioFrame") -> Fraction:
    from av import AudioFrame

    if isinstance(frame, AudioFrame):
        return Fraction(frame.samples, frame.sample_rate)
    return to_seconds(frame.duration, frame.time_base) or Fraction(0)
