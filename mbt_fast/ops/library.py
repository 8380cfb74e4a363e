"""The namespace of our operators, and the batching rule that all of them share."""

from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("mbt_fast", "DEF")


def fold(size: int, in_dims: Any, args: Any) -> list[Any]:
    """Fold the dimension that vmap maps over into the batch, the first dimension of each tensor.

    Args:
        size: Of the mapped dimension.
        in_dims: Its place in every argument, ``None`` where it is not mapped; nested like ``args``.
        args: Tensors, sequences of tensors, and anything else, which is passed on.
    """
    folded: list[Any] = []
    for arg, dim in zip(args, in_dims, strict=True):
        if isinstance(arg, Tensor):
            mapped = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            folded.append(mapped.flatten(0, 1))
        elif isinstance(arg, (list, tuple)):
            folded.append(fold(size, [None] * len(arg) if dim is None else dim, arg))
        else:
            folded.append(arg)
    return folded
