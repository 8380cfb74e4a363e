"""Video: from decoded frames to the pixels of a view."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mbt_fast.data.decode import duration
from mbt_fast.data.pixels import Crop, planes
from mbt_fast.data.windows import Segment, spans

if TYPE_CHECKING:
    from av import VideoFrame

_INSTANT = Fraction(1, 1_000_000_000)  # seconds; no container counts time more finely


@dataclass(frozen=True)
class VideoWindow:
    """The video of one view.

    Args:
        frames: Number of frames.
        height: Of a frame, in pixels.
        width: Of a frame, in pixels.
        distance: Seconds from one frame to the next.
        min_side: Short side of a frame, in pixels, before the crop.
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


class VideoCollector:
    """Samples frames at the times of windows.

    The sample at a time is the last frame that starts no later; before the first frame it is the
    first. Only sampled frames are converted and kept.

    Args:
        window: The video of one view.
        starts: Start of each view, in seconds on the file's clock.
        segment: The part of the file that is shown.
        wrap: Show the segment again from its start where the window goes beyond its end. Without
            it the last frame is repeated.
        crop: What part of a frame is shown.
    """

    def __init__(
        self,
        window: VideoWindow,
        starts: Sequence[Fraction],
        segment: Segment,
        *,
        wrap: bool = False,
        crop: Crop | None = None,
    ) -> None:
        """Wait for the frames of ``window`` at each start."""
        from av.video.reformatter import VideoReformatter

        asked = [start + k * window.distance for start in starts for k in range(window.frames)]
        last = segment.end - _INSTANT
        times = [segment.wrapped(time) if wrap else min(time, last) for time in asked]
        self._window, self._segment, self._wrap = window, segment, wrap
        self._asked = asked
        # Number and time of each sample; the next one is last.
        self._waiting = sorted(enumerate(times), key=lambda sample: sample[1], reverse=True)
        self._crop = crop or Crop()
        self._reformatter = VideoReformatter()
        size = (len(starts), 3, window.frames, window.height, window.width)
        self._pixels = torch.empty(size, dtype=torch.uint8)
        self._shown: VideoFrame | None = None
        self._last: tuple[Fraction, VideoFrame] | None = None

    def spans(self) -> list[tuple[Fraction, Fraction]]:
        """The stretches of the file to push, in order."""
        return spans([(time, time) for _, time in self._waiting])

    def push(self, time: Fraction, frame: "VideoFrame") -> None:
        """Take the next frame of a stretch, which starts at ``time``."""
        count = 0
        while count < len(self._waiting) and self._waiting[-1 - count][1] < time:
            count += 1
        self._take(count, frame if self._shown is None else self._shown)
        self._shown = frame
        if self._last is None or time >= self._last[0]:
            self._last = time, frame

    def reached(self, end: Fraction) -> bool:
        """Whether a stretch that ends there needs no further frame."""
        return not self._waiting or self._waiting[-1][1] > end

    def finish_span(self, end: Fraction) -> None:
        """Nothing more comes of the stretch that ends there."""
        if self._shown is not None:
            self._take(sum(time <= end for _, time in self._waiting), self._shown)

    def finish(self) -> Tensor | None:
        """The samples, uint8 ``[V, 3, T, H, W]``, or ``None`` if no frame came."""
        return None if self._shown is None else self._pixels

    def valid(self) -> list[int]:
        """How many frames of each view are not padding behind the end of the video."""
        size, end = self._window.frames, self._segment.start
        if self._last is not None:
            time, frame = self._last
            end = min(time + (duration(frame) or _INSTANT), self._segment.end)
        views = (self._asked[i : i + size] for i in range(0, len(self._asked), size))
        return [size if self._wrap else sum(time < end for time in view) for view in views]

    def _take(self, count: int, frame: "VideoFrame") -> None:
        """Show a frame at the next ``count`` times."""
        if not count:
            return
        size = (self._window.height, self._window.width)
        colours = planes(frame, self._reformatter, size, self._window.min_side, self._crop)
        for number, _ in self._waiting[-count:]:
            view, index = divmod(number, self._window.frames)
            for channel, plane in enumerate(colours):
                self._pixels[view, channel, index] = plane
        del self._waiting[-count:]
