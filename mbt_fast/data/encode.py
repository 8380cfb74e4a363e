"""Write clips as mp4: H.264 pictures with frequent key frames, and mono sound at 16 kHz."""

from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from torch import Tensor

from mbt_fast.data.sound import SAMPLE_RATE
from mbt_fast.errors import InputError

if TYPE_CHECKING:
    from av import VideoFrame

VIDEO_CODEC = "libx264"
AUDIO_CODECS = ("flac", "aac")  # the first is lossless
_BT601, _LIMITED = 6, 1  # FFmpeg's numbers for what H.264 says of its colours
_TICKS = 90000  # of the video's clock, per second


class ClipWriter:
    """An mp4 file that takes pictures and sound in order of time.

    Args:
        file: A path, or a file object that can seek.
        key_frames: A key frame comes at least every so many frames.
        audio_codec: ``"flac"``, without loss, or ``"aac"``.
        quality: Constant rate factor of H.264: 18 is hard to tell from the source, 51 is worst.
        preset: How much time H.264 spends on small files.

    Raises:
        InputError: This FFmpeg has no such encoder.
    """

    def __init__(
        self,
        file: "str | BinaryIO",
        *,
        key_frames: int = 16,
        audio_codec: str = AUDIO_CODECS[0],
        quality: int = 20,
        preset: str = "veryfast",
    ) -> None:
        """Open the file; nothing is written yet."""
        import av

        for name in (VIDEO_CODEC, audio_codec):
            if name not in av.codecs_available:
                raise InputError(f"FFmpeg must have the encoder {name}, this one has not")
        self._key_frames = key_frames
        self._audio_codec = audio_codec
        self._options = {"crf": str(quality), "preset": preset}
        self._container: Any = av.open(file, "w", format="mp4")
        self._video: Any = None
        self._audio: Any = None
        self._samples = 0

    def __enter__(self) -> "ClipWriter":
        """Be finished at the end of a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what the encoders hold back, and the index."""
        try:
            if kind is None:
                for stream in (self._video, self._audio):
                    if stream is not None:
                        self._container.mux(stream.encode(None))
        finally:
            self._container.close()

    def begin(self, size: tuple[int, int] | None, sound: bool) -> None:
        """Make the streams, before anything is added.

        Args:
            size: Width and height of the pictures, both even; ``None`` for none.
            sound: Whether sound will come.
        """
        from av.codec.context import Flags

        if size is not None:
            self._video = self._container.add_stream(VIDEO_CODEC, rate=25, options=self._options)
            self._video.width, self._video.height = size
            self._video.pix_fmt = "yuv420p"
            context = self._video.codec_context
            context.gop_size = self._key_frames
            context.time_base = Fraction(1, _TICKS)
            context.thread_count = 1
            # Pictures in the order of time: a decoder gives each at once, and mp4 states how long
            # the last one is.
            context.max_b_frames = 0
            context.flags |= Flags.frame_duration
            context.colorspace, context.color_range = _BT601, _LIMITED  # as swscale makes it
        if sound:
            self._audio = self._container.add_stream(
                self._audio_codec, rate=SAMPLE_RATE, layout="mono"
            )

    def add_picture(self, frame: "VideoFrame", time: Fraction, duration: Fraction) -> None:
        """Add a picture of the size begun with.

        Args:
            frame: The picture, in any pixel format.
            time: Seconds from the beginning, later than that of the picture before.
            duration: Seconds that it is shown, which counts for the last one.
        """
        from av.video.frame import PictureType

        frame.pts, frame.time_base = round(time * _TICKS), Fraction(1, _TICKS)
        frame.duration = round(duration * _TICKS)
        frame.pict_type = PictureType.NONE  # not that of the source
        self._container.mux(self._video.encode(frame))

    def add_sound(self, samples: Tensor) -> None:
        """Add float32 ``[samples]`` in [-1, 1] after those before."""
        from av import AudioFrame

        pcm = (samples * 32768).round().clamp(-32768, 32767).short().reshape(1, -1)
        frame = AudioFrame.from_ndarray(pcm.numpy(), format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        frame.pts, frame.time_base = self._samples, Fraction(1, SAMPLE_RATE)
        self._samples += len(samples)
        self._container.mux(self._audio.encode(frame))
