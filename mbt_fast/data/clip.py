"""From a media file to the inputs of a model."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor

from mbt_fast.config import MBTConfig
from mbt_fast.data.audio import FRAMES_PER_SECOND, WINDOWS, AudioWindow
from mbt_fast.data.decode import decode, probe
from mbt_fast.data.video import VideoWindow
from mbt_fast.errors import ClipError

KIND = {"rgb": "video", "spectrogram": "audio"}
AST_STATISTICS = (-4.2677393, 4.5689974)
MBT_STATISTICS = (1.102, 2.762)


@dataclass(frozen=True)
class ClipTransform:
    """How the video and the audio of a clip become tensors.

    A window spans ``time / 100`` seconds of audio (hop 10 ms) and ``frames * stride / fps`` seconds
    of video. Video is scaled, centre-cropped and mapped to [-1, 1]. Audio is averaged to mono at
    16 kHz and becomes ``(log_mel - mean) / std``.

    The default mean and standard deviation are those of Kaldi's filterbanks, Hann window, over
    AudioSet, published with AST (github.com/YuanGongND/ast; AST itself divides by twice the
    deviation). MBT's own, ``MBT_STATISTICS``, belong to features whose extraction, with its log
    offset and mel scale, was never published: use them only with features that are known to match.

    Args:
        rgb: Frames, height and width of one window, or ``None`` for a model without video.
        spectrogram: Time and mel size of one window, or ``None`` for a model without audio.
        fps: Frames per second that ``stride`` counts in; the file may have any rate.
        stride: Distance of frames, whole or not. ``None`` makes the video last as long as the
            audio, or 8 seconds without audio: 25 for the paper's 8 frames. The released
            checkpoints take 32 frames with stride 2.
        min_side: Short side of a frame before the centre crop; ``None`` is 256/224 of the
            crop's.
        window: Analysis window of the spectrogram, ``"hamming"`` (MBT) or ``"hann"`` (AST).
        mean: Subtracted from the log-mel spectrogram.
        std: Divides it.

    Raises:
        ValueError: An option is out of range, or there is neither video nor audio.
    """

    rgb: tuple[int, ...] | None = (8, 224, 224)
    spectrogram: tuple[int, ...] | None = (800, 128)
    fps: float = 25.0
    stride: float | None = None
    min_side: int | None = None
    window: str = "hamming"
    mean: float = AST_STATISTICS[0]
    std: float = AST_STATISTICS[1]

    def __post_init__(self) -> None:
        """Check every field."""
        if self.rgb is None and self.spectrogram is None:
            raise ValueError("rgb or spectrogram must have a size, got none of both")
        for name, axes in (("rgb", 3), ("spectrogram", 2)):
            size = getattr(self, name)
            if size is not None and (len(size) != axes or min(size) < 1):
                raise ValueError(f"{name} must have {axes} sizes of at least 1, got {size}")
        for name in ("fps", "stride", "min_side", "std"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive, got {value}")
        if not math.isfinite(self.mean):
            raise ValueError(f"mean must be finite, got {self.mean}")
        if self.window not in WINDOWS:
            raise ValueError(f"window must be one of {', '.join(WINDOWS)}, got {self.window!r}")

    @classmethod
    def from_config(cls, config: MBTConfig, **options: Any) -> "ClipTransform":
        """What a model takes of a clip: its modalities ``rgb`` and ``spectrogram``.

        Args:
            config: The model's configuration.
            **options: The other fields of ``ClipTransform``.

        Raises:
            ValueError: The model has neither modality, or an option is out of range.
        """
        rgb, spectrogram = (config.input_size.get(modality) for modality in KIND)
        return cls(rgb, spectrogram, **options)

    @property
    def windows(self) -> dict[str, VideoWindow | AudioWindow]:
        """What one view takes, per modality of the model."""
        windows: dict[str, VideoWindow | AudioWindow] = {}
        seconds = Fraction(8)
        if self.spectrogram is not None:
            seconds = Fraction(self.spectrogram[0], FRAMES_PER_SECOND)
        if self.rgb is not None:
            frames, height, width = self.rgb
            distance = seconds / frames
            if self.stride is not None:
                distance = Fraction(self.stride) / Fraction(self.fps)
            side = self.min_side or round(min(height, width) * 256 / 224)
            windows["rgb"] = VideoWindow(frames, height, width, distance, side)
        if self.spectrogram is not None:
            time, mel = self.spectrogram
            windows["spectrogram"] = AudioWindow(time, mel, self.window, self.mean, self.std)
        return windows


@dataclass(frozen=True)
class Clip:
    """The inputs of a model from one file, and what is worth knowing about them.

    Args:
        path: The file.
        inputs: ``{"rgb": [V, 3, T, H, W], "spectrogram": [V, time, mel]}``, float32, ``V`` views;
            only modalities that the file has.
        duration: Length of the clip in seconds.
        formats: The stream behind each modality, in words.
        starts: Start of each view in seconds from the start of the clip, per modality.
    """

    path: str
    inputs: Mapping[str, Tensor]
    duration: float
    formats: Mapping[str, str]
    starts: Mapping[str, tuple[float, ...]]

    @property
    def n_views(self) -> int:
        """Number of views, ``V``."""
        return len(next(iter(self.starts.values())))


def load_clip(path: str | os.PathLike[str], transform: ClipTransform, n_views: int = 4) -> Clip:
    """Decode a file into views that are evenly spaced over it, as MBT is tested.

    The last frame is repeated where the video ends early; missing audio is silence.

    >>> clip = load_clip("clip.mp4", ClipTransform.from_config(model.config))  # doctest: +SKIP
    >>> logits = model(clip.inputs).mean(0)  # doctest: +SKIP

    Args:
        path: A media file: video, audio or both, in any container that FFmpeg reads.
        transform: What the model takes.
        n_views: Number of views of a clip longer than a window; a shorter one has a single view.

    Returns:
        The clip, with the modalities that file and model share.

    Raises:
        ClipError: The file cannot be read or decoded, is cut off, or has no modality of the model.
        ValueError: ``n_views`` is below 1.
    """
    windows = transform.windows
    source = probe(path, [KIND[modality] for modality in windows])
    windows = {m: window for m, window in windows.items() if KIND[m] in source.streams}
    lengths = {modality: window.seconds for modality, window in windows.items()}
    starts = view_starts(source.duration, lengths, n_views)

    collectors: dict[str, Any] = {  # each takes the frames of its own kind
        KIND[modality]: window.collector([source.start + start for start in starts[modality]])
        for modality, window in windows.items()
    }
    for kind, time, frame in decode(source):
        collectors[kind].push(time, frame)
    inputs = {modality: collectors[KIND[modality]].finish() for modality in windows}
    empty = [KIND[modality] for modality, tensor in inputs.items() if tensor is None]
    if empty:
        raise ClipError(f"{source.path}: no {' and no '.join(empty)} could be decoded")
    return Clip(
        path=source.path,
        inputs={modality: tensor for modality, tensor in inputs.items() if tensor is not None},
        duration=float(source.duration),
        formats={modality: source.formats[KIND[modality]] for modality in windows},
        starts={modality: tuple(map(float, starts[modality])) for modality in windows},
    )


def view_starts(
    duration: Fraction, windows: dict[str, Fraction], n_views: int
) -> dict[str, list[Fraction]]:
    """Starts of ``n_views`` windows per modality, evenly spaced over the clip.

    The first window starts with the clip and the last one ends with it; a single one lies in the
    middle. Modalities whose windows differ in length stand at the same proportion of their own
    range, as in the paper's synchronous sampling. A clip no longer than any window has one view.

    Args:
        duration: Length of the clip in seconds.
        windows: Length of the window of each modality in seconds.
        n_views: Number of views of a long clip, at least 1.

    Returns:
        For each modality the starts in seconds from the start of the clip, equally many.

    Raises:
        ValueError: ``n_views`` is below 1.
    """
    if n_views < 1:
        raise ValueError(f"n_views must be at least 1, got {n_views}")
    ranges = {modality: max(duration - window, Fraction(0)) for modality, window in windows.items()}
    if not any(ranges.values()):
        return {modality: [Fraction(0)] for modality in windows}
    if n_views == 1:
        return {modality: [reach / 2] for modality, reach in ranges.items()}
    return {
        modality: [reach * view / (n_views - 1) for view in range(n_views)]
        for modality, reach in ranges.items()
    }
