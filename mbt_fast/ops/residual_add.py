"""Residual sum and slot mean of all streams, on a kernel backend.

``residual_add_fwd`` returns ``M`` sums ``[B, S_m, C]``, whose slots are shared unless
``n_bottlenecks`` is 0. ``residual_add_bwd`` returns, in one list, ``M`` gradients of the streams,
empty without slots, where they are what arrives, and ``M`` of the branches, empty without ``keep``,
where they are those of the streams.
"""

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

from mbt_fast.ops.library import LIBRARY, one_by_one

LAUNCHERS = {"triton": "mbt_fast.kernels.residual_add", "cpu": "mbt_fast.cpu.residual_add"}

LIBRARY.define(
    "residual_add_fwd(Tensor[] streams, Tensor[] branches, Tensor?[] keep, Tensor?[] lengths, "
    "int n_bottlenecks, str backend) -> Tensor[]"
)
LIBRARY.define(
    "residual_add_bwd(Tensor[] dsums, Tensor?[] keep, Tensor?[] lengths, int n_bottlenecks, "
    "str backend) -> Tensor[]"
)

Optional = Sequence[Tensor | None]


@torch.library.impl(LIBRARY, "residual_add_fwd", "CompositeExplicitAutograd")
def _fwd(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    keep: Optional,
    lengths: Optional,
    n_bottlenecks: int,
    backend: str,
) -> list[Tensor]:
    launcher = importlib.import_module(LAUNCHERS[backend]).residual_add_fwd
    return launcher(streams, branches, keep, lengths, n_bottlenecks)


@torch.library.impl(LIBRARY, "residual_add_bwd", "CompositeExplicitAutograd")
def _bwd(
    dsums: Sequence[Tensor], keep: Optional, lengths: Optional, n_bottlenecks: int, backend: str
) -> list[Tensor]:
    launcher = importlib.import_module(LAUNCHERS[backend]).residual_add_bwd
    dx, dbranches = launcher(dsums, keep, lengths, n_bottlenecks)
    return [*dx, *dbranches]


@torch.library.register_fake("mbt_fast::residual_add_fwd", lib=LIBRARY)
def _fwd_fake(streams: Sequence[Tensor], *rest: object) -> list[Tensor]:
    return [stream.new_empty(stream.shape) for stream in streams]


@torch.library.register_fake("mbt_fast::residual_add_bwd", lib=LIBRARY)
def _bwd_fake(
    dsums: Sequence[Tensor], keep: Optional, lengths: Optional, n_bottlenecks: int, backend: str
) -> list[Tensor]:
    dx = [dsum.new_empty(dsum.shape if n_bottlenecks else 0) for dsum in dsums]
    dbranches = [
        dsum.new_empty(0 if kept is None else dsum.shape)
        for dsum, kept in zip(dsums, keep, strict=True)
    ]
    return [*dx, *dbranches]


residual_add_fwd = torch.ops.mbt_fast.residual_add_fwd.default
residual_add_bwd = torch.ops.mbt_fast.residual_add_bwd.default

torch.library.register_vmap("mbt_fast::residual_add_fwd", one_by_one(residual_add_fwd), lib=LIBRARY)
torch.library.register_vmap("mbt_fast::residual_add_bwd", one_by_one(residual_add_bwd), lib=LIBRARY)
