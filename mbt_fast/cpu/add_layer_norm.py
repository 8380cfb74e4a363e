"""Launchers of residual sum, slot mean and LayerNorm on the CPU, for all streams of a call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mbt_fast import native
from mbt_fast.cpu.arguments import contiguous, dtype_name, pointer, tokens, unit_last_stride

Optional = Sequence[Tensor | None]


def add_layer_norm_fwd(
    streams: Sequence[Tensor],
    branches: Optional,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    keep: Optional,
    lengths: Optional,
    n_bottlenecks: int,
    eps: float,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Run the forward.

    Arguments are those of ``mbt_fast.functional.add_layer_norm``, checked and complete.

    Returns:
        Per stream the sums ``[B, S_m, C]``, empty where they are the stream itself; the normalised
        sums; and what the backward needs besides, float32 ``[2, B, S_m]``: mean and reciprocal
        standard deviation of each row.
    """
    streams = [unit_last_stride(stream) for stream in streams]
    branches = [None if entry is None else unit_last_stride(entry) for entry in branches]
    sums = [
        stream.new_empty(0 if branch is None and n_bottlenecks == 0 else stream.shape)
        for stream, branch in zip(streams, branches, strict=True)
    ]
    normed = [stream.new_empty(stream.shape) for stream in streams]
    stats = [s.new_empty(2, *s.shape[:2], dtype=torch.float32) for s in streams]
    parameters = [[_float32(entry) for entry in entries] for entries in (weights, biases)]
    keep, lengths = contiguous(keep), contiguous(lengths)
    if any(stream.numel() for stream in streams):
        module, dtype = native.module(), streams[0].dtype
        module.add_layer_norm_fwd(
            _call(streams[0], n_bottlenecks, eps),
            [
                module.NormForward(
                    tokens("streams", stream, dtype), tokens("branches", branch, dtype),
                    tokens("sums", total if total.numel() else None, dtype),
                    tokens("normed", out, dtype), stream.shape[1],
                    pointer("keep", kept, torch.bool), pointer("lengths", length, torch.int32),
                    weight.data_ptr(), bias.data_ptr(), stat.data_ptr(),
                )
                for stream, branch, total, out, kept, length, weight, bias, stat in zip(
                    streams, branches, sums, normed, keep, lengths, *parameters, stats, strict=True
                )
            ],
        )  # fmt: skip
    return sums, normed, stats


def add_layer_norm_bwd(
    dsums: Optional,
    dnormed: Sequence[Tensor],
    sums: Sequence[Tensor],
    stats: Sequence[Tensor],
    weights: Sequence[Tensor],
    keep: Optional,
    lengths: Optional,
    n_bottlenecks: int,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Run the backward.

    Args:
        dsums: ``[B, S_m, C]`` per stream, of any layout, or ``None`` where the sums are not used.
        dnormed: ``[B, S_m, C]`` per stream, of any layout.
        sums: What was normalised.
        stats: What the forward returned last.
        weights: As in the forward, like all that follow.
        keep: Likewise.
        lengths: Likewise.
        n_bottlenecks: Likewise.

    Returns:
        Per stream the gradient of the stream, contiguous; of the branch, empty without ``keep``,
        where it is the stream's; of the weight; of the bias.
    """
    sums, dnormed = ([unit_last_stride(t) for t in entries] for entries in (sums, dnormed))
    dsums = [None if entry is None else unit_last_stride(entry) for entry in dsums]
    keep, lengths = contiguous(keep), contiguous(lengths)
    stats = [stat.contiguous() for stat in stats]
    wide = [_float32(weight) for weight in weights]
    dx = [total.new_empty(total.shape) for total in sums]
    dbranches = [
        total.new_empty(0 if kept is None else total.shape)
        for total, kept in zip(sums, keep, strict=True)
    ]
    dparameters = [weight.new_zeros(2, *weight.shape) for weight in wide]
    if any(entry.numel() for entry in dx):
        module, dtype = native.module(), sums[0].dtype
        module.add_layer_norm_bwd(
            _call(sums[0], n_bottlenecks, 0.0),
            [
                module.NormBackward(
                    tokens("sums", total, dtype), tokens("dsums", dsum, dtype),
                    tokens("dnormed", dout, dtype), tokens("dx", grad, dtype),
                    tokens("dbranches", dbranch if dbranch.numel() else None, dtype),
                    total.shape[1], pointer("keep", kept, torch.bool),
                    pointer("lengths", length, torch.int32), weight.data_ptr(),
                    pointer("stats", stat, torch.float32), dparameter.data_ptr(),
                )
                for total, dsum, dout, grad, dbranch, kept, length, weight, stat, dparameter in zip(
                    sums, dsums, dnormed, dx, dbranches, keep, lengths, wide, stats, dparameters,
                    strict=True,
                )
            ],
        )  # fmt: skip
    dweights, dbiases = (
        [both[part].to(w.dtype, copy=True) for both, w in zip(dparameters, weights, strict=True)]
        for part in range(2)
    )
    return dx, dbranches, dweights, dbiases


def _call(stream: Tensor, n_bottlenecks: int, eps: float) -> object:
    batch, _, channels = stream.shape
    return native.module().NormCall(
        native.instruction_set(),
        dtype_name(stream.dtype),
        (batch, n_bottlenecks, channels),
        eps,
        torch.get_num_threads(),
    )


def _float32(parameter: Tensor) -> Tensor:
    return parameter.float().contiguous()
