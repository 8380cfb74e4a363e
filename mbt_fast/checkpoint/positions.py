"""Position embeddings on a grid, and how they move to a grid of another size."""

import torch
import torch.nn.functional as F
from torch import Tensor

_MODES = {2: "bilinear", 3: "trilinear"}


def resize_grid(grid: Tensor, size: tuple[int, ...]) -> Tensor:
    """Interpolate linearly along each axis, corner to corner.

    The corners of the new grid are the corners of the old one; an axis of extent 1 takes the first
    entry. This is ``scipy.ndimage.zoom(order=1)``, which the official code uses.

    Args:
        grid: ``[*extents, C]`` with two or three extents, any floating dtype.
        size: The new extents.

    Returns:
        ``[*size, C]`` in the dtype of ``grid``; ``grid`` itself if the size is the same.
    """
    if tuple(grid.shape[:-1]) == tuple(size):
        return grid
    channels_first = grid.movedim(-1, 0).unsqueeze(0)
    wide = channels_first.to(torch.promote_types(grid.dtype, torch.float32))
    resized = F.interpolate(wide, size=tuple(size), mode=_MODES[len(size)], align_corners=True)
    return resized.squeeze(0).movedim(0, -1).to(grid.dtype)


def resize_positions(positions: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Resize the grid part of position embeddings; the CLS entry at index 0 is kept.

    Args:
        positions: ``[1, 1 + prod(old), C]``.
        old: Its grid.
        new: The grid wanted, with as many axes.

    Returns:
        ``[1, 1 + prod(new), C]``.
    """
    cls_entry, grid = positions[:, :1], positions[0, 1:]
    resized = resize_grid(grid.unflatten(0, old), new).flatten(0, -2)
    return torch.cat([cls_entry, resized.unsqueeze(0)], dim=1)
