"""The two rules by which ``torch.vmap`` batches an operator of ours."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Rule = Callable[..., tuple[Any, Any]]


def loop(operator: Callable[..., Any]) -> Rule:
    """A call per example: for operators whose parameters may be mapped too."""

    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        calls = [operator(*_example(index, in_dims, args)) for index in range(info.batch_size)]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        stacked = [torch.stack(results) for results in zip(*calls, strict=True)]
        return type(calls[0])(stacked), type(calls[0])([0] * len(stacked))

    return rule


def fold(
    operator: Callable[..., Any], axes: Mapping[int, int], axis_of: Callable[[int, Any], int]
) -> Rule:
    """One call, with the mapped dimension folded into the batch.

    Args:
        operator: Returns a list of tensors.
        axes: By position of an argument, the axis of the batch in its tensors; else 0.
        axis_of: From the number of a result and the arguments, the axis of the batch in it.
    """

    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[list[Tensor], list[int]]:
        size = info.batch_size
        folded = [
            _fold(size, dim, arg, axes.get(position, 0))
            for position, (dim, arg) in enumerate(zip(in_dims, args, strict=True))
        ]
        results = []
        for index, result in enumerate(operator(*folded)):
            axis = axis_of(index, args)
            results.append(result.unflatten(axis, (size, -1)).movedim(axis, 0))
        return results, [0] * len(results)

    return rule


def _fold(size: int, dim: Any, arg: Any, axis: int) -> Any:
    """The argument with its mapped dimension in front of the batch, and flattened into it."""
    if isinstance(arg, Tensor):
        mapped = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        return mapped.movedim(0, axis).flatten(axis, axis + 1)
    if isinstance(arg, (list, tuple)):
        dims = [None] * len(arg) if dim is None else dim
        return [_fold(size, d, entry, axis) for d, entry in zip(dims, arg, strict=True)]
    return arg


def _example(index: int, in_dims: Any, args: Any) -> list[Any]:
    """The arguments of one example."""
    chosen: list[Any] = []
    for arg, dim in zip(args, in_dims, strict=True):
        if isinstance(arg, Tensor):
            chosen.append(arg if dim is None else arg.select(dim, index))
        elif isinstance(arg, (list, tuple)):
            chosen.append(_example(index, [None] * len(arg) if dim is None else dim, arg))
        else:
            chosen.append(arg)
    return chosen
