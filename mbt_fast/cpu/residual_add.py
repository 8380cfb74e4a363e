"""Launchers of residual sum and slot mean on the CPU, for all streams of a call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mbt_fast import native
from mbt_fast.cpu.arguments import contiguous, dtype_name, pointer, tokens, unit_last_stride

Optional = Sequence[Tensor | None]


def residual_add_fwd(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    keep: Optional,
    lengths: Optional,
    n_bottlenecks: int,
) -> list[Tensor]:
    """Run the forward.

    Arguments are those of ``mbt_fast.functional.residual_add``, checked and complete.

    Returns:
        The sums ``[B, S_m, C]`` of each stream, contiguous.
    """
    streams = [unit_last_stride(stream) for stream in streams]
    branches = [unit_last_stride(branch) for branch in branches]
    keep, lengths = contiguous(keep), contiguous(lengths)
    sums = [stream.new_empty(stream.shape) for stream in streams]
    if any(total.numel() for total in sums):
        module, dtype = native.module(), streams[0].dtype
        module.residual_add_fwd(
            _call(streams[0], n_bottlenecks),
            [
                module.ResidualForward(
                    tokens("streams", stream, dtype), tokens("branches", branch, dtype),
                    tokens("sums", total, dtype), stream.shape[1],
                    pointer("keep", kept, torch.bool), pointer("lengths", length, torch.int32),
                )
                for stream, branch, total, kept, length in zip(
                    streams, branches, sums, keep, lengths, strict=True
                )
            ],
        )  # fmt: skip
    return sums


def residual_add_bwd(
    dsums: Sequence[Tensor], keep: Optional, lengths: Optional, n_bottlenecks: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Run the backward.

    Args:
        dsums: ``[B, S_m, C]`` per stream, of any layout.
        keep: As in the forward, like all that follow.
        lengths: Likewise.
        n_bottlenecks: Likewise.

    Returns:
        Per stream the gradient of the stream, contiguous, empty without slots, where it is
        ``dsums``; and of the branch, empty without ``keep``, where it is the stream's.
    """
    dsums = [unit_last_stride(dsum) for dsum in dsums]
    keep, lengths = contiguous(keep), contiguous(lengths)
    dx = [dsum.new_empty(dsum.shape if n_bottlenecks else 0) for dsum in dsums]
    dbranches = [
        dsum.new_empty(0 if kept is None else dsum.shape)
        for dsum, kept in zip(dsums, keep, strict=True)
    ]
    if any(dsum.numel() for dsum in dsums):
        module, dtype = native.module(), dsums[0].dtype
        module.residual_add_bwd(
            _call(dsums[0], n_bottlenecks),
            [
                module.ResidualBackward(
                    tokens("dsums", dsum, dtype),
                    tokens("dx", grad if n_bottlenecks else None, dtype),
                    tokens("dbranches", None if kept is None else dbranch, dtype),
                    dsum.shape[1], pointer("keep", kept, torch.bool),
                    pointer("lengths", length, torch.int32),
                )
                for dsum, grad, dbranch, kept, length in zip(
                    dsums, dx, dbranches, keep, lengths, strict=True
                )
            ],
        )  # fmt: skip
    return dx, dbranches


def _call(stream: Tensor, n_bottlenecks: int) -> object:
    batch, _, channels = stream.shape
    return native.module().ResidualCall(
        native.instruction_set(),
        dtype_name(stream.dtype),
        (batch, n_bottlenecks, channels),
        torch.get_num_threads(),
    )
