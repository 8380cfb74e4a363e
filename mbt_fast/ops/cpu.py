"""Launchers of the C++ kernels for CPUs, ``csrc/cpu``: tensors become addresses and strides.

Each takes the outputs to fill, allocated by ``ops.operator``, and then the arguments of the op.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mbt_fast.ops import extension
from mbt_fast.ops.layout import contiguous, last_dim_contiguous

Entries = Sequence[Tensor | None]  # one per stream
F32, I32, BOOL = torch.float32, torch.int32, torch.bool
_NAMES = {F32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}  # the kernels'


def bottleneck_attention_fwd(
    outs: Sequence[Tensor],
    lses: Sequence[Tensor],
    stats: Sequence[Tensor],
    slots: Sequence[Tensor],
    qkv: Sequence[Tensor],
    lengths: Entries,
    n_bottlenecks: int,
    update_mean: bool,
    scale: float,
    return_lse: bool,
) -> None:
    """Fill outputs and log-sum-exps, which are computed in any case, and what the backward needs.

    ``stats`` are the shift of the softmax and log2 of its sum; ``slots`` holds one tensor, the
    slots of all streams before the shared update.
    """
    if not any(out.numel() for out in outs):
        return
    (qkv,), (lengths,) = last_dim_contiguous(qkv), contiguous(lengths)
    (module, isa), dtype = extension.cpu_kernels(), qkv[0].dtype
    xs, counts = _addresses(qkv=(qkv, dtype), lengths=(lengths, I32))
    streams = [
        module.StreamForward(
            x, q.stride()[:4], q.shape[1], n, out.data_ptr(), lse.data_ptr(), stat.data_ptr()
        )
        for q, x, n, out, lse, stat in zip(qkv, xs, counts, outs, lses, stats, strict=True)
    ]
    batch, _, _, heads, head_dim = qkv[0].shape
    shape = (batch, heads, n_bottlenecks, head_dim)
    kept = slots[0].data_ptr() if slots[0].numel() else 0
    call = module.Call(isa, _NAMES[dtype], shape, scale, torch.get_num_threads())
    module.bottleneck_attention_fwd(call, streams, kept)


def bottleneck_attention_bwd(
    dqkv: Sequence[Tensor],
    douts: Sequence[Tensor],
    dlses: Entries,
    outs: Sequence[Tensor],
    stats: Sequence[Tensor],
    slots: Sequence[Tensor],
    qkv: Sequence[Tensor],
    lengths: Entries,
    n_bottlenecks: int,
    update_mean: bool,
    scale: float,
) -> None:
    """Fill the packed gradients."""
    if not any(grad.numel() for grad in dqkv):
        return
    qkv, douts = last_dim_contiguous(qkv, douts)
    dlses, outs, stats, slots, lengths = contiguous(dlses, outs, stats, slots, lengths)
    (module, isa), dtype = extension.cpu_kernels(), qkv[0].dtype
    xs, counts, out, stat, dout, dlse = _addresses(
        qkv=(qkv, dtype), lengths=(lengths, I32), outs=(outs, dtype), stats=(stats, F32),
        douts=(douts, dtype), dlses=(dlses, F32),
    )  # fmt: skip
    addresses = zip(xs, counts, out, stat, dout, dlse, strict=True)
    streams = [
        module.StreamBackward(
            x, q.stride()[:4], q.shape[1], n, o, s, do, d.stride()[:3], dl, grad.data_ptr()
        )
        for q, d, grad, (x, n, o, s, do, dl) in zip(qkv, douts, dqkv, addresses, strict=True)
    ]
    shares = update_mean and n_bottlenecks > 0
    ((kept,),) = _addresses(slots=(slots if shares else [None], dtype))
    batch, _, _, heads, head_dim = qkv[0].shape
    shape = (batch, heads, n_bottlenecks, head_dim)
    call = module.Call(isa, _NAMES[dtype], shape, scale, torch.get_num_threads())
    module.bottleneck_attention_bwd(call, streams, kept)


def bias_gelu_fwd(
    outs: Sequence[Tensor], xs: Sequence[Tensor], biases: Entries, approximate: str
) -> None:
    """Fill ``gelu(x + bias)``."""
    (xs,), (biases,) = contiguous(xs), _float32(biases)
    (module, isa), dtype = extension.cpu_kernels(), xs[0].dtype
    addresses = _addresses(xs=(xs, dtype), biases=(biases, F32))
    for out, x, x_ptr, bias_ptr in zip(outs, xs, *addresses, strict=True):
        if x.numel():
            shape = (approximate, x.numel(), x.shape[-1])
            call = module.GeluCall(isa, _NAMES[dtype], *shape, torch.get_num_threads())
            module.bias_gelu_fwd(call, x_ptr, bias_ptr, out.data_ptr())


def bias_gelu_bwd(
    dxs: Sequence[Tensor],
    dbiases: Sequence[Tensor],
    douts: Sequence[Tensor],
    xs: Sequence[Tensor],
    biases: Entries,
    approximate: str,
) -> None:
    """Fill the gradients of ``x`` and, where there is one, of the bias."""
    xs, douts = contiguous(xs, douts)
    (biases,), dtype = _float32(biases), xs[0].dtype
    addresses = _addresses(xs=(xs, dtype), biases=(biases, F32), douts=(douts, dtype))
    module, isa = extension.cpu_kernels()
    for dx, dbias, x, pointers in zip(dxs, dbiases, xs, zip(*addresses, strict=True), strict=True):
        wide = dbias.new_zeros(dbias.shape, dtype=F32)  # sums are added to what is there
        if x.numel():
            shape = (approximate, x.numel(), x.shape[-1])
            call = module.GeluCall(isa, _NAMES[dtype], *shape, torch.get_num_threads())
            module.bias_gelu_bwd(call, *pointers, dx.data_ptr(), wide.data_ptr())
        dbias.copy_(wide)


def add_layer_norm_fwd(
    sums: Sequence[Tensor],
    normed: Sequence[Tensor],
    stats: Sequence[Tensor],
    streams: Sequence[Tensor],
    branches: Entries,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    keep: Entries,
    lengths: Entries,
    n_bottlenecks: int,
    eps: float,
) -> None:
    """Fill sums, their LayerNorm, and mean and reciprocal standard deviation of each row."""
    if not any(out.numel() for out in normed):
        return
    streams, branches = last_dim_contiguous(streams, branches)
    keep, lengths = contiguous(keep, lengths)
    weights, biases = _float32(weights, biases)
    (module, isa), dtype = extension.cpu_kernels(), streams[0].dtype
    written = [total if total.numel() else None for total in sums]
    rows = _rows(
        streams=(streams, dtype), branches=(branches, dtype), sums=(written, dtype),
        normed=(normed, dtype),
    )  # fmt: skip
    rest = _addresses(
        keep=(keep, BOOL), lengths=(lengths, I32), weights=(weights, F32), biases=(biases, F32),
        stats=(stats, F32),
    )  # fmt: skip
    each = zip(zip(*rows, strict=True), streams, zip(*rest, strict=True), strict=True)
    entries = [module.NormForward(*tokens, x.shape[1], *pointers) for tokens, x, pointers in each]
    shape = (streams[0].shape[0], n_bottlenecks, streams[0].shape[2])
    call = module.NormCall(isa, _NAMES[dtype], shape, eps, torch.get_num_threads())
    module.add_layer_norm_fwd(call, entries)


def add_layer_norm_bwd(
    dxs: Sequence[Tensor],
    dbranches: Sequence[Tensor],
    dweights: Sequence[Tensor],
    dbiases: Sequence[Tensor],
    dsums: Entries,
    dnormed: Sequence[Tensor],
    sums: Sequence[Tensor],
    stats: Sequence[Tensor],
    weights: Sequence[Tensor],
    keep: Entries,
    lengths: Entries,
    n_bottlenecks: int,
) -> None:
    """Fill the gradients of streams, of branches that have a mask, of weights and of biases."""
    sums, dnormed, dsums = last_dim_contiguous(sums, dnormed, dsums)
    stats, keep, lengths = contiguous(stats, keep, lengths)
    (wide,), dtype = _float32(weights), sums[0].dtype
    module, isa = extension.cpu_kernels()
    added = [weight.new_zeros(2, *weight.shape) for weight in wide]  # sums are added to these
    written = [grad if grad.numel() else None for grad in dbranches]
    rows = _rows(
        sums=(sums, dtype), dsums=(dsums, dtype), dnormed=(dnormed, dtype), dxs=(dxs, dtype),
        dbranches=(written, dtype),
    )  # fmt: skip
    rest = _addresses(
        keep=(keep, BOOL), lengths=(lengths, I32), weights=(wide, F32), stats=(stats, F32),
        dparameters=(added, F32),
    )  # fmt: skip
    if any(dx.numel() for dx in dxs):
        each = zip(zip(*rows, strict=True), sums, zip(*rest, strict=True), strict=True)
        shape = (sums[0].shape[0], n_bottlenecks, sums[0].shape[2])
        call = module.NormCall(isa, _NAMES[dtype], shape, 0.0, torch.get_num_threads())
        entries = [module.NormBackward(*tokens, x.shape[1], *rest) for tokens, x, rest in each]
        module.add_layer_norm_bwd(call, entries)
    for dweight, dbias, both in zip(dweights, dbiases, added, strict=True):
        dweight.copy_(both[0])
        dbias.copy_(both[1])


def residual_add_fwd(
    sums: Sequence[Tensor],
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    keep: Entries,
    lengths: Entries,
    n_bottlenecks: int,
) -> None:
    """Fill the sums."""
    if not any(total.numel() for total in sums):
        return
    streams, branches = last_dim_contiguous(streams, branches)
    keep, lengths = contiguous(keep, lengths)
    (module, isa), dtype = extension.cpu_kernels(), streams[0].dtype
    rows = _rows(streams=(streams, dtype), branches=(branches, dtype), sums=(sums, dtype))
    rest = _addresses(keep=(keep, BOOL), lengths=(lengths, I32))
    each = zip(zip(*rows, strict=True), streams, zip(*rest, strict=True), strict=True)
    shape = (streams[0].shape[0], n_bottlenecks, streams[0].shape[2])
    call = module.ResidualCall(isa, _NAMES[dtype], shape, torch.get_num_threads())
    entries = [module.ResidualForward(*tokens, x.shape[1], *rest) for tokens, x, rest in each]
    module.residual_add_fwd(call, entries)


def residual_add_bwd(
    dxs: Sequence[Tensor],
    dbranches: Sequence[Tensor],
    dsums: Sequence[Tensor],
    keep: Entries,
    lengths: Entries,
    n_bottlenecks: int,
) -> None:
    """Fill the gradients of streams, if slots are shared, and of branches that have a mask."""
    if not any(dsum.numel() for dsum in dsums):
        return
    (dsums,), (keep, lengths) = last_dim_contiguous(dsums), contiguous(keep, lengths)
    (module, isa), dtype = extension.cpu_kernels(), dsums[0].dtype
    own, branch = ([g if g.numel() else None for g in grads] for grads in (dxs, dbranches))
    rows = _rows(dsums=(dsums, dtype), dxs=(own, dtype), dbranches=(branch, dtype))
    rest = _addresses(keep=(keep, BOOL), lengths=(lengths, I32))
    each = zip(zip(*rows, strict=True), dsums, zip(*rest, strict=True), strict=True)
    shape = (dsums[0].shape[0], n_bottlenecks, dsums[0].shape[2])
    call = module.ResidualCall(isa, _NAMES[dtype], shape, torch.get_num_threads())
    entries = [module.ResidualBackward(*tokens, x.shape[1], *rest) for tokens, x, rest in each]
    module.residual_add_bwd(call, entries)


def linear_fwd(
    outs: Sequence[Tensor], xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Entries
) -> None:
    """Fill the products."""
    xs, weights = contiguous(xs, weights)
    (biases,), dtype = _float32(biases), xs[0].dtype
    (module, isa), streams = extension.cpu_kernels(), []
    pointers = _addresses(
        xs=(xs, dtype), weights=(weights, dtype), biases=(biases, F32), outs=(outs, dtype)
    )
    for x, weight, bias, out, each in zip(
        xs, weights, biases, outs, zip(*pointers, strict=True), strict=True
    ):
        if x.numel() and out.numel():
            outputs, inputs = weight.shape
            shape = (out.numel() // outputs, inputs, outputs)
            streams.append(module.LinearForward(shape, *each))
        else:
            out.copy_(out.new_zeros(()) if bias is None else bias)
    module.linear_fwd(module.LinearCall(isa, _NAMES[dtype], torch.get_num_threads()), streams)


def linear_bwd(
    dxs: Sequence[Tensor],
    dweights: Sequence[Tensor],
    dbiases: Sequence[Tensor],
    douts: Sequence[Tensor],
    xs: Entries,
    weights: Entries,
    biases: Sequence[bool],
) -> None:
    """Fill the gradients of rows, weights and biases that are not empty."""
    douts, xs, weights = contiguous(douts, xs, weights)
    (module, isa), dtype, streams = extension.cpu_kernels(), douts[0].dtype, []
    wide = [d.new_zeros(d.shape, dtype=F32) for d in dbiases]
    pointers = _addresses(
        douts=(douts, dtype), xs=(xs, dtype), weights=(weights, dtype),
        dxs=([d if d.numel() else None for d in dxs], dtype),
        dweights=([d if d.numel() else None for d in dweights], dtype),
        dbiases=([d if d.numel() else None for d in wide], F32),
    )  # fmt: skip
    for dout, x, weight, dx, dweight, each in zip(
        douts, xs, weights, dxs, dweights, zip(*pointers, strict=True), strict=True
    ):
        inputs = next((t.shape[-1] for t in (x, weight) if t is not None), 1)
        if dout.numel():
            shape = (dout.numel() // dout.shape[-1], inputs, dout.shape[-1])
            streams.append(module.LinearBackward(shape, *each))
        else:
            dx.zero_()
            dweight.zero_()
    module.linear_bwd(module.LinearCall(isa, _NAMES[dtype], torch.get_num_threads()), streams)
    for dbias, summed in zip(dbiases, wide, strict=True):
        dbias.copy_(summed)


def _addresses(**lists: tuple[Entries, torch.dtype]) -> list[list[int]]:
    """Addresses of lists of tensors that must have a dtype, by argument; 0 for none.

    A program that was exported or traced on the CPU may be run elsewhere, and what autograd hands
    over under autocast may have another dtype; neither may reach raw memory.

    Raises:
        ValueError: A tensor is not on the CPU.
        TypeError: A tensor has another dtype.
    """
    for name, (entries, dtype) in lists.items():
        for tensor in entries:
            if tensor is None:
                continue
            if not tensor.is_cpu:
                device = tensor.device
                raise ValueError(f"{name} must be on the CPU for backend 'cpu', got {device}")
            if tensor.dtype != dtype:
                raise TypeError(f"{name} must have dtype {dtype}, got {tensor.dtype}")
    return [[0 if t is None else t.data_ptr() for t in entries] for entries, _ in lists.values()]


def _rows(**lists: tuple[Entries, torch.dtype]) -> list[list[tuple[int, int, int]]]:
    """Addresses of ``[B, S, C]``, with the strides of examples and rows; zeros for none."""
    return [
        [
            (0, 0, 0) if t is None else (address, t.stride(0), t.stride(1))
            for address, t in zip(addresses, entries, strict=True)
        ]
        for addresses, (entries, _) in zip(_addresses(**lists), lists.values(), strict=True)
    ]


def _float32(*lists: Sequence[Any]) -> list[list[Any]]:
    """Parameters as the kernels read them."""
    return [[None if t is None else t.float().contiguous() for t in entries] for entries in lists]
