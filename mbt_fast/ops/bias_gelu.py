"""``bias_gelu``: GELU of a Linear's output, its bias added."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

from mbt_fast.ops import stock
from mbt_fast.ops.backends import on_every_backend
from mbt_fast.ops.checks import check_parameter, check_tensor
from mbt_fast.ops.dispatch import Call, select
from mbt_fast.ops.operator import Entries, Groups, Implementation, Operator, filled


def bias_gelu(
    x: Tensor, bias: Tensor | None = None, *, approximate: str = "tanh", backend: str = "auto"
) -> Tensor:
    """GELU of a Linear's output: ``gelu(x + bias)``, the MLP's activation.

    Equal to::

        torch.nn.functional.gelu(x + bias, approximate=approximate)

    Only ``x`` and ``bias`` are kept for the backward, which recomputes the rest.

    Args:
        x: ``[..., C]``, floating point, any strides.
        bias: ``[C]``, in the dtype of ``x`` or, for 16-bit types, in float32; ``None`` adds
            nothing.
        approximate: ``"tanh"``, as in the official MBT, or ``"none"`` for the error function.
        backend: ``"auto"``, ``"triton"`` (the tanh form), ``"cpu"``, ``"sdpa"`` or
            ``"reference"``, which are both torch's own.

    Returns:
        A tensor like ``x``. Autocast does not change its dtype.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value is out of range; the message names it.
        mbt_fast.dispatch.BackendError: The named backend cannot run this call.

    Numerics:
        Sum and GELU in float32 on kernels, rounded once. The bias' gradient is summed in
        float32 in an order that depends on the shape alone.

    Source:
        Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415.
    """
    check(x, bias, approximate)
    run = choose(x.device, x.dtype, x.numel(), approximate, backend).run
    return run([x], [bias], approximate)[0][0]


def choose(
    device: torch.device, dtype: torch.dtype, elements: int, approximate: str, backend: str
) -> Implementation:
    """Who runs GELU of so many elements."""
    size = None
    if not torch.compiler.is_compiling():  # torch's own is as fast in the form with erf
        size = elements if approximate == "tanh" else 0
    return BY_BACKEND[
        select(Call("bias_gelu", device, dtype, size, form=approximate), backend).name
    ]


def check(x: Tensor, bias: Tensor | None, approximate: str) -> None:
    """Check the arguments of ``bias_gelu``."""
    check_tensor("x", x)
    if x.ndim == 0:
        raise ValueError("x must have shape [..., C], got a scalar")
    if bias is not None:
        check_parameter("bias", bias, "x", x)
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")


def meaning(xs: Sequence[Tensor], biases: Entries, approximate: str) -> Groups:
    """``gelu(x + bias)`` of each stream by torch's own function, in the dtype of ``x``."""
    pairs = zip(xs, biases, strict=True)
    sums = [x if bias is None else x + bias for x, bias in pairs]
    return ([gelu(s, approximate=approximate).to(x.dtype) for s, x in zip(sums, xs, strict=True)],)


class BiasGelu(Operator):
    """Of a list of tensors ``[..., C]`` and biases; of which only these are kept."""

    name = "bias_gelu"
    forward = "Tensor[] xs, Tensor?[] biases, str approximate"
    backward = "Tensor[] douts, Tensor[] xs, Tensor?[] biases, str approximate"
    lists, inputs, outputs, groups = 2, 2, 1, 1

    def results(self, xs: Sequence[Tensor], *rest: Any) -> Groups:
        """Tensors like ``xs``, contiguous."""
        return ([x.new_empty(x.shape) for x in xs],)

    def gradients(self, douts: Any, xs: Sequence[Tensor], biases: Entries, *rest: Any) -> Groups:
        """Of ``xs``, contiguous, and of the biases, empty where there is none."""
        dbiases = [
            x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
            for x, bias in zip(xs, biases, strict=True)
        ]
        return [x.new_empty(x.shape) for x in xs], dbiases

    def save(self, lists: Groups, results: Groups) -> Groups:
        """The arguments; the backward computes the rest again."""
        return lists

    def differentiate(self, bwd: Any, grads: Groups, saved: Groups, *options: Any) -> Groups:
        """Gradients of ``xs`` and biases."""
        xs, biases = saved
        found = bwd(filled(grads[0], xs), xs, biases, *options)
        return list(found[: len(xs)]), list(found[len(xs) :])


TORCH = Implementation(meaning, stock.bias_gelu_bwd)
BY_BACKEND = on_every_backend(BiasGelu(), stock=TORCH, reference=TORCH)
