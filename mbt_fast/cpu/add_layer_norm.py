"""Launchers of residual sum, slot mean and LayerNorm on the CPU, for all streams of a call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mbt_fast import native

Optional = Sequence[Tensor | None]
NONE = (0, 0, 0)  # a tensor that is not there: address, strides of examples and rows


def add_layer_norm_fwd(
    streams: Sequence[Tensor],
    branches: Optional,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
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
    streams = [_unit_last_stride(stream) for stream in streams]
    branches = [None if entry is None else _unit_last_stride(entry) for entry in branches]
    sums = [
        stream.new_empty(0 if branch is None and n_bottlenecks == 0 else stream.shape)
        for stream, branch in zip(streams, branches, strict=True)
    ]
    normed = [stream.new_empty(stream.shape) for stream in streams]
    stats = [s.new_empty(2, *s.shape[:2], dtype=torch.float32) for s in streams]
    parameters = [[_float32(entry) for entry in entries] for entries in (weights, biases)]
    lengths = [None if entry is None else entry.contiguous() for entry in lengths]
    if any(stream.numel() for stream in streams):
        module = native.module()
        module.add_layer_norm_fwd(
            _call(streams[0], n_bottlenecks, eps),
            [
                module.NormForward(
                    _tokens(stream), _tokens(branch), _tokens(total if total.numel() else None),
                    _tokens(out), stream.shape[1], _pointer(length), weight.data_ptr(),
                    bias.data_ptr(), stat.data_ptr(),
                )
                for stream, branch, total, out, length, weight, bias, stat in zip(
                    streams, branches, sums, normed, lengths, *parameters, stats, strict=True
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
    lengths: Optional,
    n_bottlenecks: int,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Run the backward.

    Args:
        dsums: ``[B, S_m, C]`` per stream, of any layout, or ``None`` where the sums are not used.
        dnormed: ``[B, S_m, C]`` per stream, of any layout.
        sums: What was normalised.
        stats: What the forward returned last.
        weights: As in the forward, like all that follow.
        lengths: Likewise.
        n_bottlenecks: Likewise.

    Returns:
        Per stream the gradient of stream and branch alike, contiguous; of the weight; of the bias.
    """
    sums, dnormed = ([_unit_last_stride(t) for t in entries] for entries in (sums, dnormed))
    dsums = [None if entry is None else _unit_last_stride(entry) for entry in dsums]
    lengths = [None if entry is None else entry.contiguous() for entry in lengths]
    wide = [_float32(weight) for weight in weights]
    dx = [total.new_empty(total.shape) for total in sums]
    dparameters = [weight.new_zeros(2, *weight.shape) for weight in wide]
    if any(entry.numel() for entry in dx):
        module = native.module()
        module.add_layer_norm_bwd(
            _call(sums[0], n_bottlenecks, 0.0),
            [
                module.NormBackward(
                    _tokens(total), _tokens(dsum), _tokens(dout), _tokens(grad), total.shape[1],
                    _pointer(length), weight.data_ptr(), stat.data_ptr(), dparameter.data_ptr(),
                )
                for total, dsum, dout, grad, length, weight, stat, dparameter in zip(
                    sums, dsums, dnormed, dx, lengths, wide, stats, dparameters, strict=True
                )
            ],
        )  # fmt: skip
    dweights, dbiases = (
        [both[part].to(w.dtype, copy=True) for both, w in zip(dparameters, weights, strict=True)]
        for part in range(2)
    )
    return dx, dweights, dbiases


def _call(stream: Tensor, n_bottlenecks: int, eps: float) -> object:
    batch, _, channels = stream.shape
    return native.module().NormCall(
        native.instruction_set(),
        str(stream.dtype).removeprefix("torch."),
        (batch, n_bottlenecks, channels),
        eps,
        torch.get_num_threads(),
    )


def _tokens(tensor: Tensor | None) -> tuple[int, int, int]:
    return NONE if tensor is None else (tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _float32(parameter: Tensor) -> Tensor:
    return parameter.float().contiguous()


def _unit_last_stride(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if its last dimension is strided."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
