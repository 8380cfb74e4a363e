"""SpecAugment: time warping and masks of frequency and time, batched.

Source: Park et al., "SpecAugment" (2019); how numbers are drawn is lingvo's
``SpectrumAugmenter``, which the official code uses. That code passes
``time_mask_max_ratio = time_warp_max_ratio = 0``, with which lingvo neither masks time nor warps
it; here a mask or a warp that is asked for takes place.
"""

import torch
from torch import Generator, Tensor


def spec_augment(
    x: Tensor,
    generator: Generator,
    *,
    frequency_mask: int = 0,
    time_mask: int = 0,
    time_masks: int = 0,
    time_warp: int = 0,
) -> Tensor:
    """Warp time, then mask time and frequency, each example by draws of its own.

    Args:
        x: Normalised spectrograms ``[B, time, mel]``, so that the value of a mask, 0, is the mean.
        generator: Of all draws.
        frequency_mask: One mask is narrower than this many bands.
        time_mask: Each mask of time is shorter than this many frames.
        time_masks: Masks of time, which may overlap.
        time_warp: Greatest shift of a frame; its neighbours are stretched and squeezed.

    Returns:
        ``[B, time, mel]``.
    """
    batch, time, mel = x.shape
    if time_warp and time > 2:
        x = _warp(x, time_warp, generator)
    masked = torch.zeros(batch, time, mel, dtype=torch.bool)
    if time_masks and time_mask:
        masked |= _spans(batch, time, time_mask, time_masks, generator)[:, :, None]
    if frequency_mask:
        masked |= _spans(batch, mel, frequency_mask, 1, generator)[:, None, :]
    return x.masked_fill(masked.to(x.device), 0)


def _spans(batch: int, size: int, widest: int, count: int, generator: Generator) -> Tensor:
    """The union of ``count`` spans in ``range(size)``, bool ``[batch, size]``."""
    width, place = torch.rand(2, batch, count, 1, generator=generator)
    width = (width * widest).long().clamp(max=size)
    start = (place * (size - width + 1)).long()
    index = torch.arange(size)
    return ((index >= start) & (index < start + width)).any(1)


def _warp(x: Tensor, most: int, generator: Generator) -> Tensor:
    """Move one frame, drawn for each example, by up to ``most`` frames; both ends stay.

    In between, output frame ``i`` is the linear interpolation at ``source[i]``, which is piecewise
    linear too.
    """
    batch, time, _ = x.shape
    shift = torch.randint(-most, most + 1, (batch, 1), generator=generator)
    origin = 1 + (torch.rand(batch, 1, generator=generator) * (time - 2)).long()
    target = (origin + shift).clamp(1, time - 1)
    index = torch.arange(time)
    rising = index * (origin / target)
    falling = time - (time - index) * ((time - origin) / (time - target))
    source = torch.where(index < target, rising, falling).clamp(max=time - 1).to(x)
    left = source.long()
    right = (left + 1).clamp(max=time - 1)
    return torch.lerp(_frames(x, left), _frames(x, right), (source - left)[:, :, None])


def _frames(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[:, :, None].expand_as(x))
