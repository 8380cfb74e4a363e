"""Where the windows of a clip lie, and which times of the file they show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

# Windows that are closer than this are decoded in one go: a seek goes back to a key frame, and
# these are often some seconds apart.
_WORTH_A_SEEK = Fraction(5)  # seconds


@dataclass(frozen=True)
class Segment:
    """The part of a file that windows are taken from, in seconds on the file's clock.

    Args:
        start: Its first instant.
        end: Behind its last instant.
    """

    start: Fraction
    end: Fraction

    @property
    def duration(self) -> Fraction:
        """Seconds from ``start`` to ``end``."""
        return self.end - self.start

    def wrapped(self, time: Fraction) -> Fraction:
        """The time in the segment, which follows itself without end."""
        return self.start + (time - self.start) % self.duration


def view_positions(n_views: int) -> list[Fraction]:
    """Evenly spaced positions from 0, the first window, to 1, the last one; a single one is 1/2.

    Raises:
        ValueError: ``n_views`` is below 1.
    """
    if n_views < 1:
        raise ValueError(f"n_views must be at least 1, got {n_views}")
    if n_views == 1:
        return [Fraction(1, 2)]
    return [Fraction(view, n_views - 1) for view in range(n_views)]


def window_starts(
    duration: Fraction, windows: Mapping[str, Fraction], positions: Sequence[Fraction]
) -> dict[str, list[Fraction]]:
    """Starts of the windows at given positions, in seconds from the start of the clip.

    Modalities whose windows differ in length stand at the same proportion of their own range, as in
    the paper's synchronous sampling. A clip no longer than any window has one view.

    Args:
        duration: Length of the clip in seconds.
        windows: Length of the window of each modality in seconds.
        positions: Proportions of the range, from 0 to 1.
    """
    ranges = {modality: max(duration - window, Fraction(0)) for modality, window in windows.items()}
    if not any(ranges.values()):
        return {modality: [Fraction(0)] for modality in windows}
    return {m: [reach * position for position in positions] for m, reach in ranges.items()}


def spans(times: Sequence[tuple[Fraction, Fraction]]) -> list[tuple[Fraction, Fraction]]:
    """The stretches of a file to decode in one go, in order, so that all of ``times`` are met."""
    merged: list[tuple[Fraction, Fraction]] = []
    for begin, end in sorted(times):
        if merged and begin - merged[-1][1] < _WORTH_A_SEEK:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged
