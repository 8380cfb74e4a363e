"""From decoded sound to the spectrograms that the model hears."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mbt_fast.data.log_mel import frame_samples, log_mel

if TYPE_CHECKING:
    from av import AudioFrame, AudioResampler

SAMPLE_RATE = 16000
FRAMES_PER_SECOND = 100
_JITTER = SAMPLE_RATE // FRAMES_PER_SECOND  # samples


@dataclass(frozen=True)
class SoundWindow:
    """The sound of one view.

    Args:
        time: Frames of the spectrogram, 10 ms apart.
        mel: Bands of the spectrogram.
        taper: Name of the analysis window, see ``log_mel``.
        mean: Subtracted from the logarithms.
        std: Divides the difference.
    """

    time: int
    mel: int
    taper: str
    mean: float
    std: float

    @property
    def seconds(self) -> Fraction:
        """Length of the window."""
        return Fraction(self.time, FRAMES_PER_SECOND)

    @property
    def samples(self) -> int:
        """Samples that give exactly ``time`` frames; the last frame reaches past ``seconds``."""
        length, hop = frame_samples(SAMPLE_RATE)
        return (self.time - 1) * hop + length

    def collector(self, starts: Sequence[Fraction]) -> "SoundCollector":
        """An empty collector for windows with these starts, in seconds."""
        return SoundCollector(self, starts)

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """From float32 ``[V, samples]`` to the normalised log-mel ``[V, time, mel]``."""
        bands = log_mel(waveform, sample_rate=SAMPLE_RATE, n_mels=self.mel, window=self.taper)
        return (bands - self.mean) / self.std


class SoundCollector:
    """Keeps, of sound that passes in order of time, the wanted windows at 16 kHz, mono.

    The channels are averaged. Time without sound is zero. Containers round timestamps, so one that
    is off by up to 10 ms does not interrupt the sound; a larger difference is a gap or a jump.
    """

    def __init__(self, window: SoundWindow, starts: Sequence[Fraction]) -> None:
        """Wait for the samples of ``window`` at each start."""
        self._window = window
        self._starts = [round(start * SAMPLE_RATE) for start in starts]
        self._waveform = torch.zeros(len(starts), window.samples)
        self._resampler: AudioResampler | None = None
        self._format: tuple[str, str, int] | None = None
        self._position: int | None = None

    def push(self, time: Fraction, frame: "AudioFrame") -> None:
        """Take the next frame, which starts at ``time``."""
        from av import AudioResampler

        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or form != self._format:
            self._place(None)
            self._resampler, self._format = AudioResampler("fltp", rate=SAMPLE_RATE), form
        frame.time_base = Fraction(1, frame.sample_rate)
        frame.pts = round(time * frame.sample_rate)
        self._place(frame)

    def finish(self) -> Tensor | None:
        """The spectrograms, float32 ``[V, time, mel]``, or ``None`` if no sound came."""
        self._place(None)
        return None if self._position is None else self._window.spectrogram(self._waveform)

    def _place(self, frame: "AudioFrame | None") -> None:
        """Resample a frame, or with ``None`` what is left of earlier ones, and copy it to its time.

        The mean is taken here, because FFmpeg's downmix of equal channels is sqrt(2) too loud.
        """
        pieces = [] if self._resampler is None else self._resampler.resample(frame)
        for piece in pieces:
            sound = torch.from_numpy(piece.to_ndarray()).mean(0)
            begin = round((piece.pts or 0) * (piece.time_base or 0) * SAMPLE_RATE)
            if self._position is not None and abs(begin - self._position) <= _JITTER:
                begin = self._position
            self._copy(sound, begin)
            self._position = begin + len(sound)

    def _copy(self, sound: Tensor, begin: int) -> None:
        for row, start in zip(self._waveform, self._starts, strict=True):
            low, high = max(begin, start), min(begin + len(sound), start + len(row))
            if low < high:
                row[low - start : high - start] = sound[low - begin : high - begin]
