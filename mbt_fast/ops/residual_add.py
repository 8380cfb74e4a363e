"""``residual_add``: residual sum and shared slots, the end of a fusion layer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mbt_fast.ops.backends import on_every_backend
from mbt_fast.ops.checks import (
    check_branch,
    check_keep,
    check_per_stream,
    check_same_dtype,
    check_streams,
    check_tensor,
)
from mbt_fast.ops.dispatch import Call, select
from mbt_fast.ops.operator import Entries, Groups, Implementation, Operator
from mbt_fast.ops.streams import add_branch, write_mean_slots


def residual_add(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    *,
    keep: Sequence[Tensor | None] | None = None,
    n_bottlenecks: int = 0,
    lengths: Entries | None = None,
    backend: str = "auto",
) -> list[Tensor]:
    """Add residual branches and share the slots: the end of a fusion layer.

    Equal, for every stream, to::

        total = stream + torch.where(keep[:, None, None], branch, 0)      # [B, S, C]
        total[:, -P:] = mean over the present streams of total[:, -P:]    # Eq. 9, if P > 0, M > 1

    Nothing is kept for the backward but ``keep`` and ``lengths``.

    Args:
        streams: ``M`` tensors ``[B, S_m, C]``, floating point, any strides; the kernels read them
            in place if the last stride is 1.
        branches: ``M`` tensors like ``streams``. Under autocast a branch is cast to its stream's
            dtype.
        keep: ``M`` entries, each ``None`` (for all) or bool ``[B]``: the examples that the branch
            is added for, unscaled. That of the others is not read; its gradient is zero.
        n_bottlenecks: ``P >= 0``, the last ``P`` rows of each stream, which become their mean over
            the streams; 0 leaves the streams to themselves.
        lengths: ``M`` entries, each ``None`` or int32 or int64 ``[B]``; 0 means that the stream is
            absent for this example: its slots take no part in the mean. They receive it all the
            same, as from ``share_slots_``; ``add_layer_norm`` makes them zero. Where no stream is
            present the mean is zero.
        backend: ``"auto"``, ``"triton"`` (at most 8192 channels), ``"cpu"``, ``"sdpa"`` or
            ``"reference"``, which are both torch's own.

    Returns:
        ``M`` new tensors ``[B, S_m, C]`` in the dtype of the streams, under autocast too.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value is out of range; the message names it.
        mbt_fast.dispatch.BackendError: The named backend cannot run this call.

    Numerics:
        Sums in float32; the mean in float32 and in the order of the streams.

    Source:
        Eq. 9 of "Attention Bottlenecks for Multimodal Fusion" (Nagrani et al., 2021), and Huang
        et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382.
    """
    keep, lengths = check(streams, branches, keep, n_bottlenecks, lengths)
    branches = [branch.to(s.dtype) for s, branch in zip(streams, branches, strict=True)]
    return add(streams, branches, keep, lengths, n_bottlenecks, backend)


def add(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    keep: Entries,
    lengths: Entries,
    n_bottlenecks: int,
    backend: str = "auto",
) -> list[Tensor]:
    """``residual_add`` of arguments that were checked, branches in the dtype of the streams."""
    shared = n_bottlenecks if len(streams) > 1 else 0
    fuses = shared != 0 or any(mask is not None for mask in keep)
    size = None
    if not torch.compiler.is_compiling():  # in a plain sum there is nothing to fuse
        size = sum(stream.numel() for stream in streams) if fuses else 0
    first = streams[0]
    call = Call("residual_add", first.device, first.dtype, size, first.shape[-1])
    run = BY_BACKEND[select(call, backend).name].run
    return run(streams, branches, keep, lengths, shared)[0]


def check(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    keep: Sequence[Tensor | None] | None,
    n_bottlenecks: int,
    lengths: Sequence[Tensor | None] | None,
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Check the arguments of ``residual_add``; return keep and lengths."""
    lengths = check_streams(streams, n_bottlenecks, lengths)
    keep = [None] * len(streams) if keep is None else keep
    for name, entries in {"branches": branches, "keep": keep}.items():
        check_per_stream(name, entries, streams)
    for index, stream in enumerate(streams):
        check_same_dtype(f"streams[{index}]", stream, "streams[0]", streams[0])
        check_tensor(f"branches[{index}]", branches[index])
        check_branch(f"branches[{index}]", branches[index], f"streams[{index}]", stream)
        check_keep(f"keep[{index}]", keep[index], f"branches[{index}]", branches[index])
    return list(keep), lengths


def meaning(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    keep: Entries,
    lengths: Entries,
    n_bottlenecks: int,
) -> Groups:
    """Residual sum of each stream, then, if ``n_bottlenecks`` is not 0, the shared slots."""
    sums = [add_branch(*terms) for terms in zip(streams, branches, keep, strict=True)]
    if n_bottlenecks:
        write_mean_slots(sums, n_bottlenecks, lengths)
    return (sums,)


class ResidualAdd(Operator):
    """One result, the sums. Nothing is kept but masks and lengths."""

    name = "residual_add"
    forward = (
        "Tensor[] streams, Tensor[] branches, Tensor?[] keep, Tensor?[] lengths, int n_bottlenecks"
    )
    backward = "Tensor[] dsums, Tensor?[] keep, Tensor?[] lengths, int n_bottlenecks"
    lists, inputs, outputs, groups = 4, 2, 1, 1
    materialize_grads = True

    def results(self, streams: Sequence[Tensor], *rest: Any) -> Groups:
        """Sums ``[B, S_m, C]``."""
        return ([stream.new_empty(stream.shape) for stream in streams],)

    def gradients(self, dsums: Any, keep: Any, lengths: Any, n_bottlenecks: int) -> Groups:
        """Of streams and branches, empty where they are what arrives, and the streams'."""
        dxs = [dsum.new_empty(dsum.shape if n_bottlenecks else 0) for dsum in dsums]
        dbranches = [
            dsum.new_empty(0 if mask is None else dsum.shape)
            for dsum, mask in zip(dsums, keep, strict=True)
        ]
        return dxs, dbranches

    def save(self, lists: Groups, results: Groups) -> Groups:
        """Masks, lengths, and nothing of the size of a stream."""
        return lists[2], lists[3]

    def differentiate(self, bwd: Any, grads: Groups, saved: Groups, *options: Any) -> Groups:
        """What arrives, where neither slots nor masks change it."""
        (dsums,), (keep, lengths), (n_bottlenecks,) = grads, saved, options
        if not n_bottlenecks and all(mask is None for mask in keep):
            return dsums, dsums
        found = bwd(dsums, keep, lengths, n_bottlenecks)
        dxs = list(found[: len(dsums)]) if n_bottlenecks else dsums
        own = found[len(dsums) :]
        return dxs, [dx if m is None else o for dx, o, m in zip(dxs, own, keep, strict=True)]


TORCH = Implementation(meaning)
BY_BACKEND = on_every_backend(ResidualAdd(), stock=TORCH, reference=TORCH)
