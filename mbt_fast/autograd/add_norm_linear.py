"""Residual sum, LayerNorm and the Linear that reads it, for all streams; the norm is not saved."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from mbt_fast import ops
from mbt_fast.autograd.add_layer_norm import Optional, in_parts
from mbt_fast.autograd.norm_linear import cast
from mbt_fast.autograd.recomputing import Grads, Recomputing, linear_backward
from mbt_fast.autograd.refuse import first_derivative

Affine = tuple[Tensor, Tensor | None]  # weight and bias


def add_norm_linear(
    streams: Sequence[Tensor],
    branches: Optional,
    keep: Optional,
    norms: Sequence[tuple[Tensor, Tensor]],
    linears: Sequence[Affine],
    eps: float,
    backend: str,
) -> tuple[list[Tensor], list[Tensor]]:
    """``functional.add_layer_norm`` and a Linear of each result, of which only the sums are saved.

    Args:
        streams: ``M`` tensors ``[B, S_m, C]``.
        branches: ``M`` entries like ``streams``, or ``None`` where nothing is added.
        keep: ``M`` entries, bool ``[B]``, or ``None`` where every example keeps its branch.
        norms: ``M`` pairs of weight and bias ``[C]``.
        linears: ``M`` pairs of weight ``[K, C]`` and bias ``[K]`` or ``None``.
        eps: Of the norms.
        backend: A kernel backend, by its name.

    Returns:
        ``M`` sums, the stream itself where nothing is added, and ``M`` products ``[B, S_m, K]``.
    """
    branches = [
        None if b is None else b.to(x.dtype) for b, x in zip(branches, streams, strict=True)
    ]
    parameters = [*zip(*norms, strict=True), *zip(*(cast(*each) for each in linears), strict=True)]
    tensors = [t for kind in (streams, branches, keep, *parameters) for t in kind]
    sums, products = in_parts(AddNormLinear.apply(eps, backend, *tensors), 2)
    pairs = zip(streams, branches, sums, strict=True)
    return [x if branch is None else total for x, branch, total in pairs], products


class AddNormLinear(Recomputing):
    """``add_norm_linear``. Arguments: two options, then ``M`` each of seven kinds of tensor.

    The kinds are streams, branches, keep, weights and biases of the norms, and of the Linears.
    """

    @staticmethod
    def forward(eps: float, backend: str, *tensors: Any) -> tuple[Tensor, ...]:
        """Sums, empty where nothing is added, and products."""
        streams, branches, keep, *norm, weights, biases = in_parts(tensors, 7)
        none = [None] * len(streams)
        results = ops.add_layer_norm_fwd(streams, branches, *norm, keep, none, 0, eps, backend)
        sums, normed, _ = in_parts(results, 3)
        each = zip(normed, weights, biases, strict=True)
        return (*sums, *(linear(x.to(weight.dtype), weight, bias) for x, weight, bias in each))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save what is normalised, and the parameters but for the biases of the Linears."""
        ctx.eps, ctx.backend, *tensors = inputs
        streams, branches, keep, *norm, weights, _ = in_parts(tensors, 7)
        sums, _ = in_parts(output, 2)
        ctx.has_branch = [branch is not None for branch in branches]
        ctx.has_keep = [kept is not None for kept in keep]
        rows = [s if has else x for s, has, x in zip(sums, ctx.has_branch, streams, strict=True)]
        ctx.save_for_backward(*rows, *keep, *norm[0], *norm[1], *weights)
        ctx.mark_non_differentiable(
            *(s for s, has in zip(sums, ctx.has_branch, strict=True) if not has)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        """Norm again, then both backwards."""
        needs = in_parts(ctx.needs_input_grad[2:], 7)
        options = (ctx.eps, ctx.backend, ctx.has_branch, needs[5:])
        tensors = (*grads, *ctx.saved_tensors)
        results = first_derivative(ctx.backend, _backward, *options, *tensors)
        dx, own, *of_parameters = in_parts(results, 6)
        alike = [d if has else None for d, has in zip(dx, ctx.has_branch, strict=True)]
        dbranches = [o if has else d for o, d, has in zip(own, alike, ctx.has_keep, strict=True)]
        of_keep = [None] * len(dx)
        return None, None, *dx, *dbranches, *of_keep, *(d for kind in of_parameters for d in kind)


def _backward(
    eps: float, backend: str, has_branch: list[bool], needs: list[list[bool]], *tensors: Any
) -> Grads:
    """Gradients of streams, branches (as the operator gives them), norms, and Linears if needed."""
    dsums, douts, rows, keep, norm_weights, norm_biases, weights = in_parts(tensors, 7)
    none = [None] * len(rows)
    again = ops.add_layer_norm_fwd(
        rows, none, norm_weights, norm_biases, none, none, 0, eps, backend
    )
    _, normed, stats = in_parts(again, 3)
    each = zip(douts, normed, weights, *needs, strict=True)
    of_linears = [linear_backward(d, x.to(w.dtype), w, (True, *n)) for d, x, w, *n in each]
    of_normed, dweights, dbiases = zip(*of_linears, strict=True)
    arriving = [d if has else None for d, has in zip(dsums, has_branch, strict=True)]
    dnormed = [d.to(x.dtype) for d, x in zip(of_normed, rows, strict=True)]
    of_norms = ops.add_layer_norm_bwd(
        arriving, dnormed, rows, stats, norm_weights, keep, none, 0, backend
    )
    return (*of_norms, *dweights, *dbiases)
