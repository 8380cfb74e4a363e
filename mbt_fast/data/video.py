"""Video: from decoded frames to the pixels of a view."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from av import VideoFrame


@dataclass(frozen=True)
class VideoWindow:
    """The video of one view.

    Args:
        frames: Number of frames.
        height: Of a frame, in pixels.
        width: Of a frame, in pixels.
        distance: Seconds from one frame to the next.
        min_side: Short side of a frame, in pixels, before the centre crop.
    """

    frames: int
    height: int
    width: int
    distance: Fraction
    min_side: int

    @property
    def seconds(self) -> Fraction:
        """Length of the window."""
        return self.frames * self.distance

    def collector(self, starts: Sequence[Fraction]) -> "VideoCollector":
        """An empty collector for windows with these starts, in seconds."""
        return VideoCollector(self, starts)


class VideoCollector:
    """Samples frames at given times from frames that come in order of time.

    The sample at a time is the last frame that starts no later; before the first frame it is the
    first. Only sampled frames are converted and kept.
    """

    def __init__(self, window: VideoWindow, starts: Sequence[Fraction]) -> None:
        """Wait for the frames of ``window`` at each start."""
        times = [start + k * window.distance for start in starts for k in range(window.frames)]
        self._window = window
        self._order = sorted(range(len(times)), key=times.__getitem__)
        self._waiting = [times[i] for i in reversed(self._order)]  # the next one is last
        self._pixels: list[Tensor] = []
        self._shown: VideoFrame | None = None

    def push(self, time: Fraction, frame: "VideoFrame") -> None:
        """Take the next frame, which starts at ``time``."""
        count = sum(wanted < time for wanted in self._waiting)
        self._take(count, frame if self._shown is None else self._shown)
        self._shown = frame

    def finish(self) -> Tensor | None:
        """The samples, float32 ``[V, 3, T, H, W]`` in [-1, 1], or ``None`` if no frame came."""
        if self._shown is None:
            return None
        self._take(len(self._waiting), self._shown)
        ranks = sorted(range(len(self._order)), key=self._order.__getitem__)
        pixels = torch.stack([self._pixels[rank] for rank in ranks])
        views = pixels.unflatten(0, (-1, self._window.frames)).permute(0, 4, 1, 2, 3)
        return views.contiguous().float() / 127.5 - 1

    def _take(self, count: int, frame: "VideoFrame") -> None:
        if count:
            del self._waiting[-count:]
            size = (self._window.height, self._window.width)
            self._pixels += [to_pixels(frame, size, self._window.min_side)] * count


def to_pixels(frame: "VideoFrame", size: tuple[int, int], min_side: int) -> Tensor:
    """Scale a frame, turn it upright and crop its centre.

    Pixels are taken to be square.

    Args:
        frame: A decoded frame.
        size: Height and width of the result.
        min_side: Short side after scaling; longer where the crop would not fit.

    Returns:
        Red, green and blue, uint8 ``[height, width, 3]``.
    """
    turns = round(frame.rotation / 90) % 4  # counterclockwise, as rot90 counts
    height, width = (size[1], size[0]) if turns % 2 else size
    scale = max(
        Fraction(min_side, min(frame.height, frame.width)),
        Fraction(height, frame.height),
        Fraction(width, frame.width),
    )
    scaled = frame.reformat(
        width=round(frame.width * scale),
        height=round(frame.height * scale),
        format="rgb24",
        interpolation="BILINEAR",
    )
    pixels = torch.from_numpy(scaled.to_ndarray())
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width].rot90(turns).clone()
