"""From a decoded frame to upright pixels of the model's size."""

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.plane import VideoPlane
    from av.video.reformatter import VideoReformatter

# Of swscale: BILINEAR | FULL_CHR_H_INT | ACCURATE_RND. Without the last two, colours are off by up
# to 3 of 255. PyAV 17 has no names for them.
_BILINEAR_EXACT = 0x2 | 0x2000 | 0x40000
_MOST_PIXELS = 1 << 26


@dataclass(frozen=True)
class Crop:
    """What part of a frame is shown. The default is the centre, at the scale of ``min_side``.

    Args:
        height_scale: Factor on the height of the scaled frame.
        width_scale: Factor on its width. Neither makes it smaller than the crop.
        top: Where the crop lies between the upper edge, 0, and the lower one, 1.
        left: Where it lies between the left edge, 0, and the right one, 1.

    Raises:
        ValueError: A value is out of range.
    """

    height_scale: float = 1.0
    width_scale: float = 1.0
    top: float = 0.5
    left: float = 0.5

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("height_scale", "width_scale"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("top", "left"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")


@dataclass(frozen=True)
class Orientation:
    """How a stored picture becomes an upright one: transposed first, then mirrored.

    Args:
        transposed: Rows become columns.
        left_right: The picture is mirrored from left to right.
        upside_down: It is mirrored from top to bottom.
    """

    transposed: bool = False
    left_right: bool = False
    upside_down: bool = False

    @classmethod
    def of(cls, frame: "VideoFrame") -> "Orientation":
        """Read the whole display matrix of a frame; other angles are rounded to quarter turns.

        The pixel (x, y) is shown at (a x + c y, b x + d y), so ``a`` and ``d`` rule unless ``b``
        and ``c`` are larger.
        """
        try:
            data: Any = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # other data is of a type that PyAV does not know
            return cls.turned(frame.rotation)
        if data is None:
            return cls()
        a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, c < 0, b < 0)
        return cls(False, a < 0, d < 0)

    @classmethod
    def turned(cls, degrees: float) -> "Orientation":
        """Turn counterclockwise, to the nearest quarter."""
        turns = round(degrees / 90) % 4
        return cls(turns % 2 == 1, turns in (2, 3), turns in (1, 2))

    def apply(self, plane: Tensor) -> Tensor:
        """Turn ``[height, width, ...]``."""
        if self.transposed:
            plane = plane.transpose(0, 1)
        flipped = [axis for axis, flip in ((0, self.upside_down), (1, self.left_right)) if flip]
        return plane.flip(flipped) if flipped else plane


def planes(
    frame: "VideoFrame",
    reformatter: "VideoReformatter",
    size: tuple[int, int],
    min_side: int,
    crop: Crop,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale a frame, turn it upright and crop it.

    Pixels are taken to be square. One call of swscale goes from the decoded frame to the final
    scale.

    Args:
        frame: A decoded frame.
        reformatter: It keeps its tables from frame to frame.
        size: Height and width of the result.
        min_side: Short side after scaling; longer where the crop would not fit.
        crop: What part to show, and at which scale.

    Returns:
        Red, green and blue, uint8 ``[height, width]`` each: views of the scaled frame.
    """
    upright = Orientation.of(frame)
    stored = (frame.width, frame.height) if upright.transposed else (frame.height, frame.width)
    height, width = _scaled(stored, size, min_side, crop)
    scaled = reformatter.reformat(
        frame,
        width=height if upright.transposed else width,
        height=width if upright.transposed else height,
        format="gbrp",  # planar, which is what swscale is quickest at
        interpolation=_BILINEAR_EXACT,
        threads=1,
    )
    green, blue, red = (upright.apply(_rows(plane)) for plane in scaled.planes)
    top, left = _offset(height - size[0], crop.top), _offset(width - size[1], crop.left)
    part = slice(top, top + size[0]), slice(left, left + size[1])
    return red[part], green[part], blue[part]


def _rows(plane: "VideoPlane") -> Tensor:
    """The bytes of a plane, ``[height, width]``, without a copy."""
    rows = torch.frombuffer(plane, dtype=torch.uint8).view(-1, plane.line_size)
    return rows[: plane.height, : plane.width]


def _scaled(
    upright: tuple[int, int], size: tuple[int, int], min_side: int, crop: Crop
) -> tuple[int, int]:
    """Height and width of the upright frame after scaling."""
    (height, width), factors = upright, (crop.height_scale, crop.width_scale)
    scale = max(
        Fraction(min_side, min(height, width)),
        Fraction(size[0], height),
        Fraction(size[1], width),
    )
    sides = (round(side * scale * Fraction(by)) for side, by in zip(upright, factors, strict=True))
    tall, wide = (max(side, least) for side, least in zip(sides, size, strict=True))
    if tall * wide > _MOST_PIXELS:
        raise ValueError(f"frames must be less narrow, got {height} rows of {width} pixels")
    return tall, wide


def _offset(free: int, proportion: float) -> int:
    return math.ceil(free * proportion - 0.5)
