"""Mean and deviation of the log-mel spectrograms of a manifest's clips."""

import math
from dataclasses import dataclass

from torch import Tensor

from mbt_fast.data.clip import read_window
from mbt_fast.data.entry import Entry
from mbt_fast.data.media import Media
from mbt_fast.data.probe import probe
from mbt_fast.data.transform import ClipTransform
from mbt_fast.errors import ClipError


@dataclass(frozen=True)
class Moments:
    """Number, mean and squared deviations of values, in float64.

    Groups are joined without loss of digits, in whatever order they come (Chan, Golub, LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances", 1979).

    Args:
        count: Number of values.
        mean: Their mean.
        squares: Sum of their squared distances from the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Tensor) -> "Moments":
        """Of all elements of a tensor with any."""
        values = values.double()
        mean = values.mean()
        return cls(values.numel(), mean.item(), (values - mean).square().sum().item())

    @property
    def std(self) -> float:
        """Standard deviation of the values."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def __add__(self, other: "Moments") -> "Moments":
        """Of the values of both."""
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * other.count / count
        squares = self.squares + other.squares + step**2 * self.count * other.count / count
        return Moments(count, mean, squares)


def log_mel_moments(
    entry: Entry, *, time: int, mel: int, window: str, views: int
) -> tuple[Moments, str | None]:
    """Of the log-mel spectrogram of a clip, in evenly spaced windows.

    A clip shorter than a window is looped, so that no silence is counted that it does not have.

    Args:
        entry: The clip.
        time: Length of a window in spectrogram frames of 10 ms.
        mel: Number of bands.
        window: Analysis window, ``"hamming"`` or ``"hann"``.
        views: Number of windows.

    Returns:
        The moments, of nothing if the clip has no sound; and why it cannot be read, if so.
    """
    transform = ClipTransform(None, (time, mel), window=window, mean=0, std=1, short="loop")
    moments = Moments()
    try:
        with Media(entry.media) as media:
            if "audio" not in probe(media, whole=False).streams:
                return moments, None
        for view in range(views):
            position = view / (views - 1) if views > 1 else 0.5
            clip = read_window(entry.media, transform, entry.start, entry.end, position=position)
            moments += Moments.of(clip.inputs["spectrogram"])
    except ClipError as error:
        return Moments(), str(error)
    return moments, None
