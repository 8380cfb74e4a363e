"""Residual sum, slot mean and LayerNorm of all streams, on a kernel backend.

``add_layer_norm_fwd`` returns, in one list, ``M`` sums ``[B, S_m, C]``, empty where nothing is
added and no slot is shared, ``M`` normalised sums, and ``M`` times mean and reciprocal standard
deviation of the rows, float32 ``[2, B, S_m]``. ``add_layer_norm_bwd`` returns ``M`` gradients of
the streams, ``M`` of the branches, empty without ``keep``, where they are those of the streams,
``M`` of the weights, and ``M`` of the biases.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mbt_fast.ops.library import LIBRARY, one_by_one

LAUNCHERS = {"triton": "mbt_fast.kernels.add_layer_norm", "cpu": "mbt_fast.cpu.add_layer_norm"}

LIBRARY.define(
    "add_layer_norm_fwd(Tensor[] streams, Tensor?[] branches, Tensor[] weights, Tensor[] biases, "
    "Tensor?[] keep, Tensor?[] lengths, int n_bottlenecks, float eps, str backend) -> Tensor[]"
)
LIBRARY.define(
    "add_layer_norm_bwd(Tensor?[] dsums, Tensor[] dnormed, Tensor[] sums, Tensor[] stats, "
    "Tensor[] weights, Tensor?[] keep, Tensor?[] lengths, int n_bottlenecks, str backend) "
    "-> Tensor[]"
)

Optional = Sequence[Tensor | None]


@torch.library.impl(LIBRARY, "add_layer_norm_fwd", "CompositeExplicitAutograd")
def _fwd(
    streams: Sequence[Tensor],
    branches: Optional,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    keep: Optional,
    lengths: Optional,
    n_bottlenecks: int,
    eps: float,
    backend: str,
) -> list[Tensor]:
    launcher = importlib.import_module(LAUNCHERS[backend]).add_layer_norm_fwd
    sums, normed, stats = launcher(
        streams, branches, weights, biases, keep, lengths, n_bottlenecks, eps
    )
    return [*sums, *normed, *stats]


@torch.library.impl(LIBRARY, "add_layer_norm_bwd", "CompositeExplicitAutograd")
def _bwd(
    dsums: Optional,
    dnormed: Sequence[Tensor],
    sums: Sequence[Tensor],
    stats: Sequence[Tensor],
    weights: Sequence[Tensor],
    keep: Optional,
    lengths: Optional,
    n_bottlenecks: int,
    backend: str,
) -> list[Tensor]:
    launcher = importlib.import_module(LAUNCHERS[backend]).add_layer_norm_bwd
    results = launcher(dsums, dnormed, sums, stats, weights, keep, lengths, n_bottlenecks)
    return [grad for kind in results for grad in kind]


@torch.library.register_fake("mbt_fast::add_layer_norm_fwd", lib=LIBRARY)
def _fwd_fake(
    streams: Sequence[Tensor],
    branches: Optional,
    weights: Any,
    biases: Any,
    keep: Any,
    lengths: Any,
    n_bottlenecks: int,
    *rest: Any,
) -> list[Tensor]:
    sums = [
        stream.new_empty(0 if branch is None and n_bottlenecks == 0 else stream.shape)
        for stream, branch in zip(streams, branches, strict=True)
    ]
    normed = [stream.new_empty(stream.shape) for stream in streams]
    stats = [s.new_empty(2, *s.shape[:2], dtype=torch.float32) for s in streams]
    return [*sums, *normed, *stats]


@torch.library.register_fake("mbt_fast::add_layer_norm_bwd", lib=LIBRARY)
def _bwd_fake(
    dsums: Any,
    dnormed: Any,
    sums: Sequence[Tensor],
    stats: Any,
    weights: Sequence[Tensor],
    keep: Optional,
    *rest: Any,
) -> list[Tensor]:
    dx = [total.new_empty(total.shape) for total in sums]
    dbranches = [
        total.new_empty(0 if kept is None else total.shape)
        for total, kept in zip(sums, keep, strict=True)
    ]
    return [*dx, *dbranches, *(weight.new_empty(weight.shape) for weight in [*weights, *weights])]


add_layer_norm_fwd = torch.ops.mbt_fast.add_layer_norm_fwd.default
add_layer_norm_bwd = torch.ops.mbt_fast.add_layer_norm_bwd.default

torch.library.register_vmap(
    "mbt_fast::add_layer_norm_fwd", one_by_one(add_layer_norm_fwd), lib=LIBRARY
)
torch.library.register_vmap(
    "mbt_fast::add_layer_norm_bwd", one_by_one(add_layer_norm_bwd), lib=LIBRARY
)
