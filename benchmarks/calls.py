"""Calls to time: a function of tensors, forward or backward, on one set of inputs or on several."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from mbt_fast.profiling.machine import dtype_name

Function = Callable[..., Any]
Call = Callable[[], Any]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
BACKEND = "triton" if ON_GPU else "cpu"  # whose kernels of the layer are measured here
BATCHES = (1, 8, 64) if ON_GPU else (1,)


def parametrized_by_dtype(*dtypes: torch.dtype) -> pytest.MarkDecorator:
    """``dtype``, by default bfloat16 and float32."""
    return pytest.mark.parametrize(
        "dtype", dtypes or (torch.bfloat16, torch.float32), ids=dtype_name
    )


def forward(function: Function, inputs: Sequence[Tensor], dtype: torch.dtype) -> Call:
    """``function(*inputs)`` without gradients; ``dtype`` is of no interest here."""
    return torch.no_grad()(lambda: function(*inputs))


def backward(function: Function, inputs: Sequence[Tensor], dtype: torch.dtype) -> Call:
    """The backward alone, of a graph that the first call builds.

    Args:
        function: Of the inputs.
        inputs: All get a gradient.
        dtype: What the outputs' random gradients are rounded to, so that those of a float64 call
            are the same ones.
    """
    graphs: list[tuple[list[Tensor], list[Tensor], list[Tensor]]] = []

    def run() -> tuple[Tensor, ...]:
        if not graphs:
            leaves = [x.detach().requires_grad_() for x in inputs]
            outs = tree_leaves(function(*leaves))
            graphs.append((outs, leaves, [random_like(out, dtype) for out in outs]))
        outs, leaves, grads = graphs[0]
        return torch.autograd.grad(outs, leaves, grads, retain_graph=True)

    return run


MODES = {"forward": forward, "backward": backward}
parametrized_by_mode = pytest.mark.parametrize("mode", MODES)


def random_like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers for every call of one shape, rounded to ``dtype``."""
    generator = torch.Generator().manual_seed(tensor.numel())
    return torch.randn(tensor.shape, generator=generator).to(dtype).to(tensor)


def each(calls: Sequence[Call]) -> Call:
    """All of them, one after the other."""
    return calls[0] if len(calls) == 1 else lambda: [call() for call in calls]


def doubled(tensors: Any) -> Any:
    """The same structure of tensors in float64."""
    return tree_map(lambda tensor: tensor.double(), tensors)


def compare(
    race: Any,
    ours: Function,
    stock: Function,
    inputs: Sequence[Tensor],
    mode: str,
    *,
    rows: Sequence[int],
    moved: int,
    **facts: Any,
) -> None:
    """Race two functions of the same tensors, forward or backward.

    Args:
        race: The fixture.
        ours: Of the inputs, on the backend of ``BACKEND``.
        stock: The same on stock PyTorch.
        inputs: The first is a stream ``[B, rows, C]``.
        mode: One of ``MODES``.
        rows: Of each stream.
        moved: How often the call has to read or write all streams.
        **facts: What the record should say: the op and the case.
    """
    make, (batch, _, channels), dtype = MODES[mode], inputs[0].shape, inputs[0].dtype
    race(
        make(ours, inputs, dtype),
        {"torch": make(stock, inputs, dtype)},
        exact=make(stock, doubled(inputs), dtype),
        moved=moved * batch * sum(rows) * channels * dtype.itemsize,
        backend=BACKEND,
        mode=mode,
        dtype=dtype_name(dtype),
        shape={"batch": batch, "rows": list(rows), "channels": channels},
        **facts,
    )
