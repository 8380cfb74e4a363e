"""Blocks of all streams that keep their inputs alone, and compute the rest again in the backward.

Each is an ``autograd.Function`` over lists with an entry per stream. Implementations of the ops are
chosen once, in the forward; the backward holds on to them. A backward is made of differentiable
operations on saved inputs, so that second derivatives are right; or refused, by name, where a
kernel takes part that has none. Without gradients the same work is done outside of the Functions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from mbt_fast.ops.add_layer_norm import TORCH
from mbt_fast.ops.autocast import autocast
from mbt_fast.ops.linear import products
from mbt_fast.ops.operator import Entries, Groups, Implementation, split

Grads = tuple[Tensor | None, ...]


class Affine(NamedTuple):
    """Parameters of a Linear or of a LayerNorm."""

    weight: Tensor
    bias: Tensor | None


def add_norm_linear(
    streams: Sequence[Tensor],
    branches: Entries,
    keep: Entries,
    norms: Sequence[Affine],
    linears: Sequence[Affine],
    eps: float,
    norm: Implementation,
    linear: Implementation,
    *,
    recompute: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """``add_layer_norm`` without slots, and a Linear of each result.

    Args:
        streams: ``M`` tensors ``[B, S_m, C]``.
        branches: ``M`` entries like ``streams``, or ``None`` where nothing is added.
        keep: ``M`` entries, bool ``[B]``, or ``None`` where every example keeps its branch.
        norms: Of ``[C]``.
        linears: Of ``[K, C]`` and ``[K]``.
        eps: Of the norms.
        norm: Of ``add_layer_norm``.
        linear: Of ``linear``.
        recompute: Keep only the sums for the backward.

    Returns:
        ``M`` sums, the stream itself where nothing is added, and ``M`` products ``[B, S_m, K]`` in
        the dtype of the Linears (under autocast, its dtype).
    """
    if norm is not TORCH:  # which promotes in the sum, without a copy
        pairs = zip(branches, streams, strict=True)
        branches = [branch if branch is None else branch.to(x.dtype) for branch, x in pairs]
    parameters = (*zip(*norms, strict=True), *zip(*linears, strict=True))
    if recompute:
        tensors = [t for kind in (streams, branches, keep, *parameters[:2]) for t in kind]
        linear_parameters = autocast([*parameters[2], *parameters[3]])
        flat = AddNormLinear.apply(eps, norm, linear, *tensors, *linear_parameters)
        sums, outs = _lists(flat, 2)
    else:
        nothing = [None] * len(streams)
        lists = (streams, branches, *parameters[:2], keep, nothing)
        sums, normed, *_ = norm.run(*lists, 0, eps)
        outs = products(linear, normed, *parameters[2:])
    triples = zip(streams, branches, sums, strict=True)
    return [x if branch is None else total for x, branch, total in triples], outs


def gelu_linear(
    xs: Sequence[Tensor],
    first_biases: Entries,
    linears: Sequence[Affine],
    approximate: str,
    gelu: Implementation,
    linear: Implementation,
    *,
    recompute: bool,
) -> list[Tensor]:
    """``linear(gelu(x + first_bias))`` of each stream.

    Args:
        xs: ``M`` tensors ``[B, S_m, K]``.
        first_biases: ``M`` entries ``[K]``, or ``None`` where ``xs`` have it already.
        linears: Of ``[C, K]`` and ``[C]``.
        approximate: ``"tanh"`` or ``"none"``.
        gelu: Of ``bias_gelu``.
        linear: Of ``linear``.
        recompute: Keep only ``xs`` for the backward.

    Returns:
        ``M`` tensors ``[B, S_m, C]`` in the dtype of the Linears (under autocast, its dtype).
    """
    if recompute:
        parameters = autocast([t for kind in zip(*linears, strict=True) for t in kind])
        return list(GeluLinear.apply(approximate, gelu, linear, *xs, *first_biases, *parameters))
    hidden = gelu.run(xs, first_biases, approximate)[0]
    return products(linear, hidden, *zip(*linears, strict=True))


def norm_mlp(
    xs: Sequence[Tensor],
    norms: Sequence[Affine],
    first: Sequence[Affine],
    second: Sequence[Affine],
    eps: float,
    approximate: str,
    norm: Implementation,
    gelu: Implementation,
    linear: Implementation,
) -> list[Tensor]:
    """``gelu_linear`` of ``add_norm_linear``, of which only ``xs`` are kept for the backward.

    Args and results as there.
    """
    tensors = [*xs, *(t for kind in zip(*norms, strict=True) for t in kind)]
    halves = (*zip(*first, strict=True), *zip(*second, strict=True))
    parameters = autocast([t for kind in halves for t in kind])
    return list(NormMlp.apply(eps, approximate, norm, gelu, linear, *tensors, *parameters))


class _Recomputing(torch.autograd.Function):
    """Has no forward-mode derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        raise NotImplementedError(
            "a block that recomputes activations has no forward-mode derivatives; use "
            "set_execution(recompute='none')"
        )


class AddNormLinear(_Recomputing):
    """``add_norm_linear``. Three options, then ``M`` each of seven kinds of tensor.

    The kinds are streams, branches, keep, weights and biases of the norms, and of the Linears.
    """

    @staticmethod
    def forward(
        eps: float, norm: Implementation, linear: Implementation, *tensors: Any
    ) -> tuple[Tensor, ...]:
        """Sums, empty where nothing is added, and products."""
        streams, branches, keep, *norms, weights, biases = _lists(tensors, 7)
        nothing = [None] * len(streams)
        sums, normed, *_ = norm.run(streams, branches, *norms, keep, nothing, 0, eps)
        pairs = zip(sums, branches, strict=True)
        own = [total.new_empty(0) if branch is None else total for total, branch in pairs]
        return (*own, *linear.run(_like(normed, weights), weights, biases)[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what is normed, and the parameters but for the biases of the Linears."""
        ctx.eps, ctx.norm, ctx.linear, *tensors = inputs
        streams, branches, keep, *norms, weights, _ = _lists(tensors, 7)
        sums, _ = _lists(output, 2)
        ctx.has_branch = [branch is not None for branch in branches]
        rows = [s if has else x for s, has, x in zip(sums, ctx.has_branch, streams, strict=True)]
        ctx.save_for_backward(*rows, *keep, *norms[0], *norms[1], *weights)
        unused = [s for s, has in zip(sums, ctx.has_branch, strict=True) if not has]
        ctx.mark_non_differentiable(*unused)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        """Norm again, then both backwards."""
        rows, keep, *norms, weights = _lists(ctx.saved_tensors, 5)
        dsums, douts = _lists(grads, 2)
        arriving = [d if has else None for d, has in zip(dsums, ctx.has_branch, strict=True)]
        *before, of_weights, of_biases = _lists(ctx.needs_input_grad[3:], 7)
        needs = (_any(*before), of_weights, of_biases)
        of_norm, of_linear = _norm_linear_backward(
            douts, arriving, rows, keep, norms, weights, ctx.eps, ctx.norm, ctx.linear, needs
        )
        dxs, own, *of_norms = of_norm
        triples = zip(dxs, own, keep, strict=True)
        dbranches = [dx if mask is None else branch for dx, branch, mask in triples]
        dbranches = [d if has else None for d, has in zip(dbranches, ctx.has_branch, strict=True)]
        nothing = [None] * len(rows)
        return None, None, None, *dxs, *dbranches, *nothing, *_flat(of_norms), *_flat(of_linear)


class GeluLinear(_Recomputing):
    """``gelu_linear``. Three options, then ``M`` each of four kinds of tensor.

    The kinds are ``xs``, first biases, and weights and biases of the Linears.
    """

    @staticmethod
    def forward(
        approximate: str, gelu: Implementation, linear: Implementation, *tensors: Any
    ) -> tuple[Tensor, ...]:
        """GELU, then product."""
        xs, first_biases, weights, biases = _lists(tensors, 4)
        hidden = gelu.run(xs, first_biases, approximate)[0]
        return tuple(linear.run(_like(hidden, weights), weights, biases)[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep all but the last biases."""
        ctx.approximate, ctx.gelu, ctx.linear, *tensors = inputs
        ctx.save_for_backward(*tensors[: 3 * len(output)])

    @staticmethod
    def backward(ctx: Any, *douts: Tensor) -> Grads:
        """GELU again, then both backwards."""
        *before, of_weights, of_biases = _lists(ctx.needs_input_grad[3:], 4)
        xs, first_biases, weights = _lists(ctx.saved_tensors, 3)
        of_gelu, of_linear = _gelu_linear_backward(
            douts, xs, first_biases, weights, ctx.approximate, ctx.gelu, ctx.linear,
            (_any(*before), of_weights, of_biases),
        )  # fmt: skip
        return None, None, None, *_flat(of_gelu), *_flat(of_linear)


class NormMlp(_Recomputing):
    """``norm_mlp``. Five options, then ``M`` each of seven kinds of tensor.

    The kinds are ``xs``, weights and biases of the norms, of the first and of the second Linears.
    """

    @staticmethod
    def forward(
        eps: float,
        approximate: str,
        norm: Implementation,
        gelu: Implementation,
        linear: Implementation,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        """Norm, product, GELU, product."""
        xs, *norms, weights1, biases1, weights2, biases2 = _lists(tensors, 7)
        hidden = _preactivations(xs, norms, weights1, biases1, eps, norm, linear)
        activated = gelu.run(hidden, [None] * len(xs), approximate)[0]
        return tuple(linear.run(_like(activated, weights2), weights2, biases2)[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep all but the last biases."""
        ctx.options, tensors = inputs[:5], inputs[5:]
        ctx.save_for_backward(*tensors[: 6 * len(output)])

    @staticmethod
    def backward(ctx: Any, *douts: Tensor) -> Grads:
        """The first product again, then the backwards of both halves."""
        eps, approximate, norm, gelu, linear = ctx.options
        xs, *norms, weights1, biases1, weights2 = _lists(ctx.saved_tensors, 6)
        *before, of_weights1, of_biases1, of_weights2, of_biases2 = _lists(
            ctx.needs_input_grad[5:], 7
        )
        nothing = [None] * len(xs)
        hidden = _preactivations(xs, norms, weights1, biases1, eps, norm, linear)
        (dhidden, _), second = _gelu_linear_backward(
            douts, hidden, nothing, weights2, approximate, gelu, linear,
            (_any(*before, of_weights1, of_biases1), of_weights2, of_biases2),
        )  # fmt: skip
        of_norm: Sequence[Sequence[Tensor | None]] = [nothing] * 4
        first: Sequence[Sequence[Tensor | None]] = [nothing] * 2
        if dhidden[0] is not None:
            of_norm, first = _norm_linear_backward(
                dhidden, nothing, xs, nothing, norms, weights1, eps, norm, linear,
                (_any(*before), of_weights1, of_biases1),
            )  # fmt: skip
        dxs, _, *of_norms = of_norm
        return *[None] * 5, *dxs, *_flat(of_norms), *_flat(first), *_flat(second)


def _preactivations(
    xs: Sequence[Tensor],
    norms: Sequence[Sequence[Tensor]],
    weights: Sequence[Tensor],
    biases: Entries,
    eps: float,
    norm: Implementation,
    linear: Implementation,
) -> list[Tensor]:
    nothing = [None] * len(xs)
    normed = norm.run(xs, nothing, *norms, nothing, nothing, 0, eps)[1]
    hidden: list[Tensor] = linear.run(_like(normed, weights), weights, biases)[0]
    return hidden


def _norm_linear_backward(
    douts: Sequence[Tensor],
    dsums: Entries,
    rows: Sequence[Tensor],
    keep: Entries,
    norms: Sequence[Sequence[Tensor]],
    weights: Sequence[Tensor],
    eps: float,
    norm: Implementation,
    linear: Implementation,
    needs: tuple[bool, Sequence[bool], Sequence[bool]],
) -> tuple[Groups, Groups]:
    """Gradients of streams, branches, norm weights and norm biases; of Linear weights and biases.

    ``needs`` says whether anything before the Linears has a gradient, and which of their weights
    and biases have.
    """
    nothing = [None] * len(rows)
    _, normed, stats = norm.run(rows, nothing, *norms, nothing, nothing, 0, eps)[:3]
    dnormed, *of_linear = _linear_backward(douts, normed, weights, linear, needs)
    if not needs[0]:
        return (nothing,) * 4, (of_linear[0], of_linear[1])
    dnormed = [d.to(x.dtype) for d, x in zip(dnormed, rows, strict=True)]
    flat = norm.bwd(dsums, dnormed, rows, stats, norms[0], keep, nothing, 0)
    return _lists(flat, 4), (of_linear[0], of_linear[1])


def _gelu_linear_backward(
    douts: Sequence[Tensor],
    xs: Sequence[Tensor],
    first_biases: Entries,
    weights: Sequence[Tensor],
    approximate: str,
    gelu: Implementation,
    linear: Implementation,
    needs: tuple[bool, Sequence[bool], Sequence[bool]],
) -> tuple[Groups, Groups]:
    """Gradients of ``xs`` and first biases; of Linear weights and biases. ``needs`` as above."""
    nothing = [None] * len(xs)
    hidden = gelu.run(xs, first_biases, approximate)[0]
    dhidden, *of_linear = _linear_backward(douts, hidden, weights, linear, needs)
    if not needs[0]:
        return (nothing, nothing), (of_linear[0], of_linear[1])
    # autocast may be on here and not in the forward
    dhidden = [d.to(x.dtype) for d, x in zip(dhidden, xs, strict=True)]
    dxs, dbiases = _lists(gelu.bwd(dhidden, xs, first_biases, approximate), 2)
    pairs = zip(dbiases, first_biases, strict=True)
    return (dxs, [None if bias is None else d for d, bias in pairs]), (of_linear[0], of_linear[1])


def _linear_backward(
    douts: Sequence[Tensor],
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    linear: Implementation,
    needs: tuple[bool, Sequence[bool], Sequence[bool]],
) -> Groups:
    """Gradients of ``xs``, weights and biases, where needed."""
    of_xs, of_weights, of_biases = needs
    pairs = zip(_like(xs, weights), of_weights, strict=True)
    rows = [x if needed else None for x, needed in pairs]
    found = linear.bwd(douts, rows, weights if of_xs else [None] * len(rows), of_biases)
    asked = (*[of_xs] * len(rows), *of_weights, *of_biases)
    return _lists([d if needed else None for d, needed in zip(found, asked, strict=True)], 3)


def _like(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Rows in the dtype of the weight that they meet."""
    return [x.to(weight.dtype) for x, weight in zip(xs, weights, strict=True)]


def _lists(tensors: Sequence[Any], count: int) -> Groups:
    """``count`` lists of equal length, one after the other."""
    return split(tensors, len(tensors) // count, count)


def _flat(groups: Sequence[Sequence[Any]]) -> list[Any]:
    return [entry for group in groups for entry in group]


def _any(*lists: Sequence[bool]) -> bool:
    return any(flag for flags in lists for flag in flags)
