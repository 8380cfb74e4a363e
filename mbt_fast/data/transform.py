"""What a model takes of a clip."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from mbt_fast.config import Sizes
from mbt_fast.data.audio import WINDOWS
from mbt_fast.data.sound import FRAMES_PER_SECOND, AudioWindow
from mbt_fast.data.video import VideoWindow

KIND = {"rgb": "video", "spectrogram": "audio"}
AST_STATISTICS = (-4.2677393, 4.5689974)
MBT_STATISTICS = (1.102, 2.762)
SHORT = ("repeat", "loop")
_OF_MODEL = ("rgb", "spectrogram", "patch_size", "n_cls", "sampled_frames")  # fields


class ModelSizes(Protocol):
    """What the configuration of a model says of its inputs."""

    @property
    def input_size(self) -> Mapping[str, tuple[int, ...]]:
        """Size of one input per modality."""

    @property
    def patch_size(self) -> Mapping[str, tuple[int, ...]]:
        """Size of one patch per modality."""

    @property
    def n_cls(self) -> int:
        """CLS tokens of a stream."""

    def sampled_frames(self, modality: str) -> tuple[int, ...] | None:
        """Which frames of a video are read; ``None``: all."""


@dataclass(frozen=True)
class ClipTransform:
    """How the video and the audio of a clip become tensors.

    A window spans ``time / 100`` seconds of audio (hop 10 ms) and ``frames * stride / fps`` seconds
    of video. Video is scaled, cropped and mapped to [-1, 1]. Audio is averaged to mono at 16 kHz
    and becomes ``(log_mel - mean) / std``.

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
        min_side: Short side of a frame before the crop; ``None`` is 256/224 of the crop's.
        window: Analysis window of the spectrogram, ``"hamming"`` (MBT) or ``"hann"`` (AST).
        mean: Subtracted from the log-mel spectrogram.
        std: Divides it.
        short: What fills a window that is longer than the clip: ``"repeat"`` repeats the last
            frame and adds silence, ``"loop"`` begins the clip again, as the official code does.
        circular_sound: In ``read_window``, the sound begins at the same time as the video and goes
            on from the clip's beginning where it meets its end. That is how the official code
            takes windows in training.
        patch_size: Per modality, size of a patch, from which a clip knows its ``lengths``.
        n_cls: CLS tokens that ``lengths`` count, 1 or 0.
        sampled_frames: The frames of ``rgb`` that the model reads, by index; ``None`` is all.

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
    short: str = "repeat"
    circular_sound: bool = False
    patch_size: Mapping[str, tuple[int, ...]] | None = None
    n_cls: int = 1
    sampled_frames: tuple[int, ...] | None = None

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
        for name, known in (("window", WINDOWS), ("short", SHORT)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if self.patch_size is not None:
            patches = Sizes({m: tuple(patch) for m, patch in self.patch_size.items()})
            object.__setattr__(self, "patch_size", patches)
            self._check_patches(patches)
        self._check_tokens()

    def _check_tokens(self) -> None:
        if self.n_cls not in (0, 1):
            raise ValueError(f"n_cls must be 0 or 1, got {self.n_cls}")
        frames = range(self.rgb[0] if self.rgb else 0)
        if any(index not in frames for index in self.sampled_frames or ()):
            raise ValueError(
                f"sampled_frames must be of the {len(frames)} frames of rgb, "
                f"got {self.sampled_frames}"
            )

    def _check_patches(self, patches: Sizes) -> None:
        for modality, patch in patches.items():
            size = getattr(self, modality, None) if modality in KIND else None
            if size is None:
                raise ValueError(f"patch_size must be of a modality with a size, got {modality!r}")
            if len(patch) != len(size) or any(n % p for n, p in zip(size, patch, strict=True)):
                raise ValueError(f"patch_size[{modality!r}] must divide {tuple(size)}, got {patch}")

    @classmethod
    def from_config(cls, config: ModelSizes, **options: Any) -> "ClipTransform":
        """What a model takes of a clip: its modalities ``rgb`` and ``spectrogram``.

        Args:
            config: The model's configuration, such as an ``MBTConfig``.
            **options: The other fields of ``ClipTransform``.

        Raises:
            ValueError: The model has neither modality, or an option is out of range.
        """
        rgb, spectrogram = (config.input_size.get(modality) for modality in KIND)
        own = {
            "patch_size": {m: config.patch_size[m] for m in KIND if m in config.input_size},
            "n_cls": config.n_cls,
            "sampled_frames": config.sampled_frames("rgb") if rgb else None,
        }
        return cls(rgb, spectrogram, **{**own, **options})

    @classmethod
    def from_run(cls, config: ModelSizes, front_end: Mapping[str, Any]) -> "ClipTransform":
        """What a model takes of a clip, in the way its run recorded.

        Args:
            config: As in ``from_config``.
            front_end: The fields of the run's transform. Those that follow from the model are taken
                from ``config``.

        Raises:
            TypeError: A field is unknown.
            ValueError: As in ``from_config``.
        """
        options = {name: value for name, value in front_end.items() if name not in _OF_MODEL}
        return cls.from_config(config, **options)

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

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one view of each modality: ``[3, T, H, W]`` and ``[time, mel]``."""
        shapes = {"rgb": self.rgb and (3, *self.rgb), "spectrogram": self.spectrogram}
        return {modality: shape for modality, shape in shapes.items() if shape is not None}

    def n_tokens(self, modality: str, frames: int | None = None) -> int:
        """Own tokens, CLS included, of the first ``frames`` of a view.

        A patch that holds any of these frames counts. If the model samples frames and none of them
        is among these, its first one counts: it repeats the last of these. Without a frame there
        is no token.

        Args:
            modality: One with a ``patch_size``.
            frames: Frames of the video or of the spectrogram; ``None`` is all.
        """
        size, patch = getattr(self, modality), (self.patch_size or {})[modality]
        read = size[0] if frames is None else frames
        if not read:
            return 0
        if modality == "rgb" and self.sampled_frames is not None:
            read = max(sum(index < read for index in self.sampled_frames), 1)
        across = (n // p for n, p in zip(size[1:], patch[1:], strict=True))
        return self.n_cls + math.ceil(read / patch[0]) * math.prod(across)
