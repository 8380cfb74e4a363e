"""``add_layer_norm``: residual sum, shared slots and LayerNorm, between two Linears of a layer."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from mbt_fast.ops import stock
from mbt_fast.ops.backends import on_every_backend
from mbt_fast.ops.checks import (
    check_branch,
    check_keep,
    check_parameter,
    check_per_stream,
    check_same_dtype,
    check_streams,
    kind,
)
from mbt_fast.ops.dispatch import Call, select
from mbt_fast.ops.operator import Entries, Groups, Implementation, Operator, filled
from mbt_fast.ops.streams import add_branch, shared_slots


def add_layer_norm(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor | None] | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    keep: Sequence[Tensor | None] | None = None,
    eps: float = 1e-6,
    n_bottlenecks: int = 0,
    lengths: Entries | None = None,
    backend: str = "auto",
) -> tuple[list[Tensor], list[Tensor]]:
    """Add residual branches, share the slots, normalise: what lies between two Linears of a layer.

    Equal, for every stream, to::

        total = stream + torch.where(keep[:, None, None], branch, 0)      # [B, S, C]
        total[:, -P:] = mean over the present streams of total[:, -P:]    # Eq. 9, if P > 0
        normed = torch.nn.functional.layer_norm(total, (C,), weight, bias, eps)

    Args:
        streams: ``M`` tensors ``[B, S_m, C]``, floating point, any strides; the kernels read them
            in place if the last stride is 1.
        branches: ``M`` entries like ``streams``, or ``None`` where nothing is added; ``None`` for
            no branch at all. Under autocast a branch is cast to its stream's dtype.
        weights: ``M`` tensors ``[C]``, in the dtype of the streams or, for 16-bit types, float32.
        biases: ``M`` tensors like ``weights``.
        keep: ``M`` entries, each ``None`` (for all) or bool ``[B]``: the examples that the branch
            is added for, unscaled. That of the others is not read; its gradient is zero.
        eps: Added to the variance.
        n_bottlenecks: ``P >= 0``, the last ``P`` rows of each stream, which become their mean over
            the streams; 0 leaves the streams to themselves.
        lengths: ``M`` entries, each ``None`` or int32 or int64 ``[B]``; 0 means that the stream is
            absent for this example: its slots take no part in the mean, and become zero. Own rows
            are normalised whether they are valid or not.
        backend: ``"auto"``, ``"triton"`` (at most 8192 channels), ``"cpu"``, ``"sdpa"`` or
            ``"reference"``, which are both torch's own.

    Returns:
        ``M`` sums, the stream itself where nothing is added and no slot is shared, and ``M``
        normalised sums, all ``[B, S_m, C]`` in the dtype of the streams, under autocast too.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value is out of range; the message names it.
        mbt_fast.dispatch.BackendError: The named backend cannot run this call.

    Numerics:
        What is returned as sum, rounded, is what is normalised. Statistics and sums in float32;
        gradients of weights and biases in an order that depends on the shape alone.

    Source:
        Eq. 9 of "Attention Bottlenecks for Multimodal Fusion" (Nagrani et al., 2021), and Ba et
        al., "Layer Normalization", arXiv 1607.06450.
    """
    branches, keep, lengths = check(
        streams, branches, weights, biases, keep, eps, n_bottlenecks, lengths
    )
    pairs = zip(streams, branches, strict=True)
    branches = [branch if branch is None else branch.to(s.dtype) for s, branch in pairs]
    lists = (streams, branches, weights, biases, keep, lengths)
    sums, normed, *_ = choose(streams, backend).run(*lists, n_bottlenecks, float(eps))
    return written_sums(streams, branches, sums, n_bottlenecks), normed


def choose(streams: Sequence[Tensor], backend: str) -> Implementation:
    """Who adds and norms these streams ``[B, S_m, C]``."""
    first = streams[0]
    size = None if torch.compiler.is_compiling() else sum(stream.numel() for stream in streams)
    call = Call("add_layer_norm", first.device, first.dtype, size, first.shape[-1])
    return BY_BACKEND[select(call, backend).name]


def written_sums(
    streams: Sequence[Tensor], branches: Entries, sums: Sequence[Tensor], n_bottlenecks: int
) -> list[Tensor]:
    """The sums, and the stream itself where nothing is added and no slot is shared."""
    if n_bottlenecks:
        return list(sums)
    triples = zip(streams, branches, sums, strict=True)
    return [stream if branch is None else total for stream, branch, total in triples]


def check(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor | None] | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    keep: Sequence[Tensor | None] | None,
    eps: float,
    n_bottlenecks: int,
    lengths: Sequence[Tensor | None] | None,
) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None]]:
    """Check the arguments of ``add_layer_norm``; return branches, keep and lengths."""
    lengths = check_streams(streams, n_bottlenecks, lengths)
    if streams[0].shape[2] == 0:
        raise ValueError(f"streams must have at least 1 channel, got {list(streams[0].shape)}")
    branches = [None] * len(streams) if branches is None else branches
    keep = [None] * len(streams) if keep is None else keep
    kinds = {"branches": branches, "weights": weights, "biases": biases, "keep": keep}
    for name, entries in kinds.items():
        check_per_stream(name, entries, streams)
    for index, stream in enumerate(streams):
        check_same_dtype(f"streams[{index}]", stream, "streams[0]", streams[0])
        check_branch(f"branches[{index}]", branches[index], f"streams[{index}]", stream)
        check_keep(f"keep[{index}]", keep[index], f"branches[{index}]", branches[index])
        weight, bias = f"weights[{index}]", f"biases[{index}]"
        check_parameter(weight, weights[index], f"streams[{index}]", stream)
        check_parameter(bias, biases[index], f"streams[{index}]", stream)
        check_same_dtype(bias, biases[index], weight, weights[index])
    if not isinstance(eps, Real) or isinstance(eps, bool):
        raise TypeError(f"eps must be a number, got {kind(eps)}")
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    return list(branches), list(keep), lengths


def meaning(
    streams: Sequence[Tensor],
    branches: Entries,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    keep: Entries,
    lengths: Entries,
    n_bottlenecks: int,
    eps: float,
) -> Groups:
    """Residual sum, shared slots and LayerNorm of each stream, by torch's own functions.

    Returns:
        ``[B, S_m, C]`` per stream: the sums, whose slots are shared as by ``share_slots``, and
        their LayerNorm; and its pairs of mean and reciprocal standard deviation.
    """
    sums = [add_branch(*terms) for terms in zip(streams, branches, keep, strict=True)]
    if n_bottlenecks:
        slots = shared_slots(sums, n_bottlenecks, lengths)
        sums = [s.clone() if b is None else s for s, b in zip(sums, branches, strict=True)]
        for total, shared in zip(sums, slots, strict=True):  # in place, which saves a copy
            total[:, total.shape[1] - n_bottlenecks :] = shared
    normed, stats = [], []
    for total, weight, bias in zip(sums, weights, biases, strict=True):
        wide = total.to(weight.dtype)
        out, *stat = torch.native_layer_norm(wide, weight.shape, weight, bias, eps)
        normed.append(out.to(total.dtype))
        stats.append(tuple(stat))
    return sums, normed, stats


class AddLayerNorm(Operator):
    """Results: sums, normed sums, statistics.

    Sums are empty where they are the stream itself. Statistics, float32 ``[2, B, S_m]``, are mean
    and reciprocal standard deviation of the rows.
    """

    name = "add_layer_norm"
    forward = (
        "Tensor[] streams, Tensor?[] branches, Tensor[] weights, Tensor[] biases, Tensor?[] keep, "
        "Tensor?[] lengths, int n_bottlenecks, float eps"
    )
    backward = (
        "Tensor?[] dsums, Tensor[] dnormed, Tensor[] sums, Tensor[] stats, Tensor[] weights, "
        "Tensor?[] keep, Tensor?[] lengths, int n_bottlenecks"
    )
    lists, inputs, outputs, groups = 6, 4, 2, 3

    def results(self, streams: Any, branches: Any, *rest: Any) -> Groups:
        """All ``[B, S_m, C]`` but the statistics."""
        shares = rest[-2] > 0
        sums = [
            x.new_empty(x.shape if shares or branch is not None else 0)
            for x, branch in zip(streams, branches, strict=True)
        ]
        stats = [x.new_empty(2, *x.shape[:2], dtype=torch.float32) for x in streams]
        return sums, [x.new_empty(x.shape) for x in streams], stats

    def gradients(self, *arguments: Any) -> Groups:
        """Of streams; of branches, empty without mask, where they are the streams'; of the rest."""
        sums, _, weights, keep = arguments[2:6]
        dbranches = [
            total.new_empty(0 if mask is None else total.shape)
            for total, mask in zip(sums, keep, strict=True)
        ]
        dxs = [total.new_empty(total.shape) for total in sums]
        dweights, dbiases = ([w.new_empty(w.shape) for w in weights] for _ in range(2))
        return dxs, dbranches, dweights, dbiases

    def save(self, lists: Groups, results: Groups) -> Groups:
        """What was normed, statistics, weights, masks and lengths."""
        streams, _, weights, _, keep, lengths = lists
        sums, normed, stats = results
        pairs = zip(sums, streams, normed, strict=True)
        rows = [x if total.shape != out.shape else total for total, x, out in pairs]
        return rows, stats, weights, keep, lengths

    def differentiate(self, bwd: Any, grads: Groups, saved: Groups, *options: Any) -> Groups:
        """Gradients of streams, branches, weights and biases."""
        rows, keep = saved[0], saved[3]
        (dsums, dnormed), count = grads, len(rows)
        found = bwd(dsums, filled(dnormed, rows), *saved, options[0])
        dxs, own = list(found[:count]), found[count : 2 * count]
        dbranches = [dx if m is None else o for dx, o, m in zip(dxs, own, keep, strict=True)]
        return dxs, dbranches, list(found[2 * count : 3 * count]), list(found[3 * count :])


TORCH = Implementation(meaning, stock.add_layer_norm_bwd)
BY_BACKEND = on_every_backend(AddLayerNorm(), stock=TORCH, reference=TORCH)
