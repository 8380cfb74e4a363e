"""Sound: from decoded frames to the spectrogram of a view."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, gcd
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mbt_fast.data.audio import frame_samples, log_mel
from mbt_fast.data.windows import Segment, spans

if TYPE_CHECKING:
    from av import AudioFrame, AudioResampler

SAMPLE_RATE = 16000
FRAMES_PER_SECOND = 100  # of a spectrogram
_JITTER = 0.01  # seconds
_AT_ONCE = 8192  # samples to resample in one go
_HIGHEST_RATE = 4_000_000  # a damaged file may state any
_PLANES = 8  # PyAV reads beyond the pointers of so many planes; packed samples have one


@dataclass(frozen=True)
class AudioWindow:
    """The audio of one view.

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

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """From float32 ``[V, samples]`` to the normalised log-mel ``[V, time, mel]``."""
        bands = log_mel(waveform, sample_rate=SAMPLE_RATE, n_mels=self.mel, window=self.taper)
        return (bands - self.mean) / self.std


@dataclass
class Piece:
    """Samples of one view that follow one another in the file.

    Args:
        row: Where they go.
        start: The first one, counted from zero on the file's clock.
        heard: How many of them lie before the end of the sound so far.
    """

    row: Tensor
    start: int
    heard: int = 0

    @property
    def end(self) -> int:
        """Behind the last sample."""
        return self.start + len(self.row)

    def copy(self, sound: Iterable[tuple[int, Tensor]]) -> None:
        """Take what falls into the piece, of samples and where the first of them lies."""
        for begin, samples in sound:
            low, high = max(begin, self.start), min(begin + len(samples), self.end)
            if low < high:
                self.row[low - self.start : high - self.start] = samples[low - begin : high - begin]
                self.heard = max(self.heard, high - self.start)


class AudioCollector:
    """Collects windows, at 16 kHz and mono, of audio whose frames come in order of time.

    The channels are averaged. Time without audio is zero. Containers round timestamps, so one that
    is off by up to 10 ms does not interrupt the audio; a larger difference is a gap or a jump.

    Args:
        window: The audio of one view.
        starts: Start of each view, in seconds on the file's clock.
        segment: The part of the file that is heard.
        wrap: Begin the segment again where the window goes beyond its end. Without it silence
            follows.
    """

    def __init__(
        self,
        window: AudioWindow,
        starts: Sequence[Fraction],
        segment: Segment,
        *,
        wrap: bool = False,
    ) -> None:
        """Wait for the samples of ``window`` at each start."""
        self._window, self._wrap = window, wrap
        self._waveform = torch.zeros(len(starts), window.samples)
        first, last = (round(time * SAMPLE_RATE) for time in (segment.start, segment.end))
        self._lap = max(last - first, 1)  # samples until the segment comes again
        self._pieces: list[list[Piece]] = []
        for row, start in zip(self._waveform, starts, strict=True):
            begin = round(start * SAMPLE_RATE)
            before = min(max(last - begin, 0), window.samples)
            pieces = [Piece(row[:before], begin)]
            if wrap:
                pieces.append(Piece(row[before : self._lap], first))
            self._pieces.append(pieces)
        self._sound = MonoSound()

    def spans(self) -> list[tuple[Fraction, Fraction]]:
        """The stretches of the file to push, in order."""
        pieces = (piece for pieces in self._pieces for piece in pieces if len(piece.row))
        rate = SAMPLE_RATE
        return spans([(Fraction(p.start, rate), Fraction(p.end, rate)) for p in pieces])

    def push(self, time: Fraction, frame: "AudioFrame") -> None:
        """Take the next frame of a stretch, which starts at ``time``."""
        self._copy(self._sound.push(time, frame))

    def reached(self, end: Fraction) -> bool:
        """Whether a stretch that ends there needs no further frame."""
        return self._sound.position >= end * SAMPLE_RATE

    def finish_span(self, end: Fraction) -> None:
        """Nothing more comes of the stretch that ends there."""
        self._copy(self._sound.flush())

    def finish(self) -> Tensor | None:
        """The spectrograms, float32 ``[V, time, mel]``, or ``None`` if no frame came."""
        if not self._sound.came:
            return None
        waveform = self._waveform
        if self._wrap and self._lap < waveform.shape[1]:
            waveform = waveform[:, torch.arange(waveform.shape[1]) % self._lap]
        return self._window.spectrogram(waveform)

    def valid(self) -> list[int]:
        """How many frames of each view do not lie behind the end of the sound."""
        if self._wrap:
            return [self._window.time] * len(self._pieces)
        _, hop = frame_samples(SAMPLE_RATE)
        return [min(ceil(piece.heard / hop), self._window.time) for (piece,) in self._pieces]

    def _copy(self, sound: Iterable[tuple[int, Tensor]]) -> None:
        samples = list(sound)
        for pieces in self._pieces:
            for piece in pieces:
                piece.copy(samples)


class MonoSound:
    """Turns frames of any format into samples of one channel at 16 kHz.

    Frames that follow one another are a run. A run begins at a time that both rates meet, with
    silence in front of its first frame: so samples are the same wherever reading began, if the
    first frame has the time that it would have had in a run from the beginning.
    """

    def __init__(self) -> None:
        """Wait for the first frame."""
        self.came = False
        self.position = 0  # behind the last sample that was given out
        self._form: tuple[str, str, int] | None = None  # of the current run
        self._next = 0  # the sample, at the rate of the file, that would go on with the run
        self._waiting: list[Tensor] = []  # samples of the run, at the rate of the file
        self._n_waiting = 0
        self._packer: AudioResampler | None = None
        self._resampler: AudioResampler | None = None

    def push(self, time: Fraction, frame: "AudioFrame") -> "Iterator[tuple[int, Tensor]]":
        """Take a frame that starts at ``time``; give samples with the index of the first one."""
        self.came = True
        rate = frame.sample_rate
        form = (frame.format.name, frame.layout.name, rate)
        first = round(time * rate)
        if form != self._form or abs(first - self._next) > rate * _JITTER:
            yield from self.flush()
            self._begin(first, form)
        self._wait(self._mean(frame))
        self._next += frame.samples
        if self._n_waiting >= _AT_ONCE:
            yield from self._give()

    def flush(self) -> "Iterator[tuple[int, Tensor]]":
        """End the run; give what is held back."""
        yield from self._give(last=True)
        self._form = self._resampler = None

    def _wait(self, samples: Tensor) -> None:
        self._waiting.append(samples)
        self._n_waiting += len(samples)

    def _give(self, last: bool = False) -> "Iterator[tuple[int, Tensor]]":
        """Resample what waits, many frames at once: a frame of its own costs more than it holds."""
        if self._waiting:
            samples = torch.cat(self._waiting)
            self._waiting, self._n_waiting = [], 0
            yield from self._place(self._resampled(samples))
        if last and self._resampler is not None:
            yield from self._place(_samples(self._resampler.resample(None)))

    def _place(self, samples: Tensor) -> "Iterator[tuple[int, Tensor]]":
        yield self.position, samples
        self.position += len(samples)

    def _begin(self, first: int, form: tuple[str, str, int]) -> None:
        """Begin a run with a sample, and with the silence before it."""
        from av import AudioResampler

        rate = form[2]
        if not 0 < rate <= _HIGHEST_RATE:
            raise ValueError(f"sample rate must be in [1, {_HIGHEST_RATE}], got {rate}")
        silence = first % (rate // gcd(rate, SAMPLE_RATE))
        self.position = (first - silence) * SAMPLE_RATE // rate
        self._form, self._next = form, first
        self._packer = AudioResampler("flt")
        if rate != SAMPLE_RATE:
            self._resampler = AudioResampler("fltp", layout="mono", rate=SAMPLE_RATE)
        self._wait(torch.zeros(silence))

    def _mean(self, frame: "AudioFrame") -> Tensor:
        """The mean of the channels; FFmpeg's downmix of equal channels is sqrt(2) too loud."""
        channels = frame.layout.nb_channels
        if frame.format.name == "fltp" and channels < _PLANES:
            return torch.from_numpy(frame.to_ndarray()).mean(0)
        if self._packer is None:
            raise RuntimeError("a run must have begun")
        frame.pts = None
        packed = [torch.from_numpy(part.to_ndarray()) for part in self._packer.resample(frame)]
        return torch.cat(packed, 1).view(-1, channels).mean(1)

    def _resampled(self, samples: Tensor) -> Tensor:
        from av import AudioFrame

        if self._resampler is None or self._form is None:
            return samples
        mono = AudioFrame.from_ndarray(samples.numpy()[None], "fltp", "mono")
        mono.sample_rate = self._form[2]
        return _samples(self._resampler.resample(mono))


def _samples(frames: "list[AudioFrame]") -> Tensor:
    return torch.cat([torch.zeros(0), *(torch.from_numpy(f.to_ndarray()[0]) for f in frames)])
