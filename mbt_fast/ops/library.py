"""The namespace of our operators, and their two batching rules."""

from collections.abc import Callable
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


def one_by_one(op: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """The batching rule of an operator whose parameters may be mapped too: a call per example."""

    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        results = [op(*_example(index, in_dims, args)) for index in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return type(results[0])(stacked), type(results[0])([0] * len(stacked))

    return rule


def _example(index: int, in_dims: Any, args: Any) -> list[Any]:
    """The arguments of one example; nested like those of ``fold``."""
    chosen: list[Any] = []
    for arg, dim in zip(args, in_dims, strict=True):
        if isinstance(arg, Tensor):
            chosen.append(arg if dim is None else arg.select(dim, index))
        elif isinstance(arg, (list, tuple)):
            chosen.append(_example(index, [None] * len(arg) if dim is None else dim, arg))
        else:
            chosen.append(arg)
    return chosen
