"""Bottleneck attention on a kernel backend: one pair of operators, the backend a string.

``bottleneck_attention_fwd`` returns, in one list, ``M`` outputs ``[B, S_m, H, D]``, ``M``
log-sum-exps ``[B, H, S_m]``, and what the backward needs besides: ``M`` times the shift and log2 of
the sum of the softmax, ``[2, B, H, S_m]``, and the slots before the shared update,
``[M, B, P, H, D]``.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mbt_fast.ops.library import LIBRARY, fold

LAUNCHERS = {
    "cuda": "mbt_fast.cuda.bottleneck_attention",
    "triton": "mbt_fast.kernels.bottleneck_attention",
    "cpu": "mbt_fast.cpu.bottleneck_attention",
}

LIBRARY.define(
    "bottleneck_attention_fwd(Tensor[] qkv, Tensor?[] lengths, int n_bottlenecks, "
    "bool update_mean, float scale, str backend) -> Tensor[]"
)
LIBRARY.define(
    "bottleneck_attention_bwd(Tensor[] douts, Tensor?[] dlses, Tensor[] saved, Tensor[] qkv, "
    "Tensor?[] lengths, int n_bottlenecks, bool update_mean, float scale, str backend) "
    "-> Tensor[]"
)

Lengths = Sequence[Tensor | None]


def import_launchers(backend: str) -> Any:
    """The module with a backend's launchers, imported when the first call needs it."""
    return importlib.import_module(LAUNCHERS[backend])


@torch.library.impl(LIBRARY, "bottleneck_attention_fwd", "CompositeExplicitAutograd")
def _fwd(
    qkv: Sequence[Tensor],
    lengths: Lengths,
    n_bottlenecks: int,
    update_mean: bool,
    scale: float,
    backend: str,
) -> list[Tensor]:
    launcher = import_launchers(backend).bottleneck_attention_fwd
    outs, lses, kept = launcher(qkv, lengths, n_bottlenecks, update_mean, scale)
    return [*outs, *lses, *kept]


@torch.library.impl(LIBRARY, "bottleneck_attention_bwd", "CompositeExplicitAutograd")
def _bwd(
    douts: Sequence[Tensor],
    dlses: Lengths,
    saved: Sequence[Tensor],
    qkv: Sequence[Tensor],
    lengths: Lengths,
    n_bottlenecks: int,
    update_mean: bool,
    scale: float,
    backend: str,
) -> list[Tensor]:
    launcher = import_launchers(backend).bottleneck_attention_bwd
    count = len(qkv)
    call = (qkv, lengths, n_bottlenecks, update_mean, scale)
    return launcher(douts, dlses, saved[:count], saved[count:], *call)


@torch.library.register_fake("mbt_fast::bottleneck_attention_fwd", lib=LIBRARY)
def _fwd_fake(
    qkv: Sequence[Tensor],
    lengths: Lengths,
    n_bottlenecks: int,
    update_mean: bool,
    scale: float,
    backend: str,
) -> list[Tensor]:
    batch, _, _, heads, head_dim = qkv[0].shape
    outs = [s.new_empty(batch, s.shape[1], heads, head_dim) for s in qkv]
    lses = [s.new_empty(batch, heads, s.shape[1], dtype=torch.float32) for s in qkv]
    kept = len(qkv) if update_mean and n_bottlenecks > 0 else 0
    stats = [lse.new_empty(2, *lse.shape) for lse in lses]
    return [*outs, *lses, *stats, qkv[0].new_empty(kept, batch, n_bottlenecks, heads, head_dim)]


@torch.library.register_fake("mbt_fast::bottleneck_attention_bwd", lib=LIBRARY)
def _bwd_fake(
    douts: Any, dlses: Any, saved: Any, qkv: Sequence[Tensor], *rest: Any
) -> list[Tensor]:
    return [s.new_empty(s.shape) for s in qkv]


bottleneck_attention_fwd = torch.ops.mbt_fast.bottleneck_attention_fwd.default
bottleneck_attention_bwd = torch.ops.mbt_fast.bottleneck_attention_bwd.default


@torch.library.register_vmap("mbt_fast::bottleneck_attention_fwd", lib=LIBRARY)
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[list[Tensor], list[int]]:
    results = bottleneck_attention_fwd(*fold(info.batch_size, in_dims, args))
    first = 2 * len(args[0])  # outputs and log-sum-exps have the batch first, the rest second
    unfolded = [entry.unflatten(0, (info.batch_size, -1)) for entry in results[:first]]
    unfolded += [
        entry.unflatten(1, (info.batch_size, -1)).movedim(1, 0) for entry in results[first:]
    ]
    return unfolded, [0] * len(unfolded)


@torch.library.register_vmap("mbt_fast::bottleneck_attention_bwd", lib=LIBRARY)
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[list[Tensor], list[int]]:
    douts, dlses, saved, *rest = fold(info.batch_size, in_dims, args)
    first = len(args[3])  # as in the forward, without the log-sum-exps
    kept = [
        _mapped(entry, dim, info.batch_size).movedim(0, 1).flatten(1, 2)
        for entry, dim in zip(args[2][first:], in_dims[2][first:], strict=True)
    ]
    grads = bottleneck_attention_bwd(douts, dlses, [*saved[:first], *kept], *rest)
    return [grad.unflatten(0, (info.batch_size, -1)) for grad in grads], [0] * len(grads)


def _mapped(entry: Tensor, dim: int | None, size: int) -> Tensor:
    """The tensor with the mapped dimension in front."""
    return entry.expand(size, *entry.shape) if dim is None else entry.movedim(dim, 0)
