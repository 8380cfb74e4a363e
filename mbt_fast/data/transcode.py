"""Write a clip anew, so that windows of it are cheap to decode."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from mbt_fast.data.decode import Decoder, duration
from mbt_fast.data.encode import AUDIO_CODECS, ClipWriter
from mbt_fast.data.entry import Entry
from mbt_fast.data.examine import open_clip
from mbt_fast.data.pixels import Orientation
from mbt_fast.data.probe import Source
from mbt_fast.data.sound import SAMPLE_RATE, MonoSound, Piece
from mbt_fast.data.windows import Segment
from mbt_fast.errors import ClipError, InputError

if TYPE_CHECKING:
    from av import AudioFrame, VideoFrame

_SHORTEST = Fraction(1, 1000)  # seconds that a picture lasts at least
_PIECE = SAMPLE_RATE  # samples that are written at a time, between pictures


@dataclass(frozen=True)
class Recipe:
    """How clips are written.

    Args:
        short_side: Of the pictures, in pixels; smaller ones are not enlarged.
        key_frames: A key frame comes at least every so many pictures.
        fps: At most so many pictures per second are kept, each at its own time.
        audio_codec: ``"flac"``, without loss, or ``"aac"``.
        quality: Constant rate factor of H.264, 0 to 51; smaller is better.

    Raises:
        InputError: A value is out of range.
    """

    short_side: int = 256
    key_frames: int = 16
    fps: float = 25.0
    audio_codec: str = AUDIO_CODECS[0]
    quality: int = 20

    def __post_init__(self) -> None:
        """Check every field."""
        for name, least, most in (
            ("short_side", 16, 4096),
            ("key_frames", 1, 1000),
            ("fps", 0.1, 1000),
            ("quality", 0, 51),
        ):
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name} must be in {least} .. {most}, got {getattr(self, name)}")
        if self.audio_codec not in AUDIO_CODECS:
            known = " or ".join(AUDIO_CODECS)
            raise InputError(f"audio_codec must be {known}, got {self.audio_codec!r}")


def transcode(entry: Entry, recipe: Recipe) -> bytes:
    """The clip of a row as an mp4 file of its own, which begins at time zero.

    Pictures are turned upright. Sound becomes mono at 16 kHz, as the front end takes it, with
    silence where the file has none.

    Args:
        entry: The row.
        recipe: How to write it.

    Raises:
        ClipError: The clip cannot be read whole, or not be encoded.
        InputError: FFmpeg lacks an encoder.
    """
    from av import FFmpegError

    with open_clip(entry) as (source, segment):
        try:
            return _written(source, segment, recipe)
        except FFmpegError as error:
            raise ClipError(f"{source.media.name}: cannot be encoded ({error.strerror})") from error


def _written(source: Source, segment: Segment, recipe: Recipe) -> bytes:
    sound = _sound(source, segment) if "audio" in source.streams else None
    file = io.BytesIO()
    with ClipWriter(
        file,
        key_frames=recipe.key_frames,
        audio_codec=recipe.audio_codec,
        quality=recipe.quality,
    ) as writer:
        written = 0
        if "video" in source.streams:
            written = _write_pictures(writer, source, segment, recipe, sound)
        else:
            writer.begin(None, True)
        if sound is not None:
            _write_sound(writer, sound, written, len(sound))
    return file.getvalue()


def _sound(source: Source, segment: Segment) -> Tensor:
    """The samples of a segment, float32, with zeros where there are none."""
    first = round(segment.start * SAMPLE_RATE)
    piece = Piece(torch.zeros(round(segment.end * SAMPLE_RATE) - first), first)
    mono = MonoSound()

    with Decoder(source) as decoder:
        for time, frame in decoder.frames("audio", segment.start):
            if time >= segment.end:
                break
            piece.copy(mono.push(time, cast("AudioFrame", frame)))
        piece.copy(mono.flush())
    if not mono.came:
        raise ClipError(f"{source.media.name}: no audio could be decoded")
    return piece.row


def _write_pictures(
    writer: ClipWriter, source: Source, segment: Segment, recipe: Recipe, sound: Tensor | None
) -> int:
    """Write the pictures, and the sound up to each; return how many samples were written."""
    from av import VideoFrame

    written = 0
    size: tuple[int, int] | None = None
    for time, length, frame in _shown(source, segment, recipe.fps):
        pixels, wanted = _upright(frame, recipe.short_side)
        if size is None:
            size = wanted
            writer.begin(size, sound is not None)
        picture = VideoFrame.from_ndarray(pixels.numpy(), format="rgb24")
        if picture.width != size[0] or picture.height != size[1]:  # it changed in the file
            picture = picture.reformat(*size)
        writer.add_picture(picture, time, length)
        if sound is not None and time * SAMPLE_RATE >= written + _PIECE:
            reached = min(round(time * SAMPLE_RATE), len(sound))
            written = _write_sound(writer, sound, written, reached)
    if size is None:
        raise ClipError(f"{source.media.name}: no video could be decoded")
    return written


def _write_sound(writer: ClipWriter, sound: Tensor, begin: int, end: int) -> int:
    for first in range(begin, end, _PIECE):
        writer.add_sound(sound[first : min(first + _PIECE, end)])
    return end


def _shown(
    source: Source, segment: Segment, fps: float
) -> "Iterator[tuple[Fraction, Fraction, VideoFrame]]":
    """The pictures of a segment: when each begins in it, how long it lasts, and the picture.

    The first is the one that is shown when the segment begins, at time zero.
    """
    slot = -1
    held: tuple[Fraction, VideoFrame] | None = None
    last = Fraction(0)
    with Decoder(source) as decoder:
        for stamp, frame in decoder.frames("video", segment.start):
            if stamp >= segment.end - _SHORTEST:
                break
            time = max(stamp - segment.start, Fraction(0))
            if held is not None and time > held[0] and _slot(held[0], fps) > slot:
                slot = _slot(held[0], fps)
                yield held[0], time - held[0], held[1]
            held = (time, cast("VideoFrame", frame))
            last = time + duration(frame)
    if held is not None and _slot(held[0], fps) > slot:
        yield held[0], max(min(last, segment.duration) - held[0], _SHORTEST), held[1]


def _slot(time: Fraction, fps: float) -> int:
    """The last tick of a clock, of which each keeps one picture; rounded times may be early."""
    return int(time * Fraction(fps) + Fraction(1, 10))


def _upright(frame: "VideoFrame", short_side: int) -> tuple[Tensor, tuple[int, int]]:
    """The picture as uint8 ``[height, width, 3]``, and its width and height, which are even."""
    upright = Orientation.of(frame)
    scale = min(Fraction(short_side, min(frame.width, frame.height)), Fraction(1))
    width, height = (max(2 * round(side * scale / 2), 2) for side in (frame.width, frame.height))
    scaled = frame.reformat(width, height, format="rgb24", interpolation="BILINEAR")
    pixels = upright.apply(torch.from_numpy(scaled.to_ndarray())).contiguous()
    return pixels, (pixels.shape[1], pixels.shape[0])
