"""Changes of colour, batched: one draw for all frames of a clip.

They have the order, the strengths and the arithmetic of the official code (DMVR's
``color_default_augm`` on TensorFlow's ``tf.image``), in closed form instead of through HSV.
"""

import torch
from torch import Tensor

BRIGHTNESS = 32 / 255  # greatest summand
SATURATION = CONTRAST = (0.6, 1.4)  # factors
HUE = 0.2  # greatest turn; 1 is the whole circle
LUMA = (0.2989, 0.587, 0.114)  # tf.image's, which sum to 0.9999

_CHANNELS = 1


def jitter(x: Tensor, draws: Tensor) -> Tensor:
    """Change brightness, saturation, contrast and hue, in this order, and clip to [0, 1].

    Args:
        x: Clips in [0, 1], float ``[B, 3, T, H, W]``.
        draws: Uniform in [0, 1), ``[B, 4]``: how strong each change is; 0.5 changes nothing.
    """
    brightness, saturation, contrast, hue = (
        column.to(x)[:, None, None, None, None] for column in draws.unbind(1)
    )
    x = x + (2 * brightness - 1) * BRIGHTNESS
    x = _saturate(x, _between(SATURATION, saturation))
    mean = x.mean((-2, -1), keepdim=True)  # of each frame and channel
    x = mean + (x - mean) * _between(CONTRAST, contrast)
    return _turn_hue(x, (2 * hue - 1) * HUE).clamp(0, 1)


def grey(x: Tensor) -> Tensor:
    """Clips ``[B, 3, T, H, W]`` whose channels are all the luma."""
    weights = x.new_tensor(LUMA)[:, None, None, None]
    return (x * weights).sum(_CHANNELS, keepdim=True).expand_as(x)


def _between(ends: tuple[float, float], share: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * share


def _saturate(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply the saturation of HSV, at most to 1, with hue and value as they are.

    Every channel then keeps its share of the distance from the value, the greatest channel.
    """
    low, value = x.aminmax(dim=_CHANNELS, keepdim=True)
    to_full = value / (value - low).clamp(min=torch.finfo(x.dtype).tiny)
    return value - (value - x) * torch.minimum(factor, to_full.clamp(min=0))


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Add to the hue of HSV, with the least and the greatest channel as they are."""
    low, high = x.aminmax(dim=_CHANNELS, keepdim=True)
    reach = high - low
    red, green, blue = x.split(1, dim=_CHANNELS)
    span = reach.clamp(min=torch.finfo(x.dtype).tiny)
    sixths = torch.where(
        red == high,
        (green - blue) / span,
        torch.where(green == high, 2 + (blue - red) / span, 4 + (red - green) / span),
    )
    offsets = x.new_tensor((5, 3, 1))[:, None, None, None]  # of red, green and blue
    phase = (offsets + sixths + 6 * turn) % 6
    return high - reach * torch.minimum(phase, 4 - phase).clamp(0, 1)
