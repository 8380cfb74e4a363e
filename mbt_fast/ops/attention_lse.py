"""The log-sum-exp of attention scores, which torch's fused attention does not return.

``attention_lse_fwd`` never holds more than ``CHUNK`` rows of the score matrix at once, in float32
(float64 for float64), and ``attention_lse_bwd`` recomputes them.
"""

from typing import Any

import torch
from torch import Tensor

from mbt_fast import reference
from mbt_fast.ops.library import LIBRARY, fold

CHUNK = 256  # query rows whose scores exist at a time

LIBRARY.define("attention_lse_fwd(Tensor query, Tensor key, Tensor? valid, float scale) -> Tensor")
LIBRARY.define(
    "attention_lse_bwd(Tensor dlse, Tensor query, Tensor key, Tensor? valid, "
    "float scale) -> (Tensor, Tensor)"
)


@torch.library.impl(LIBRARY, "attention_lse_fwd", "CompositeExplicitAutograd")
def _attention_lse_fwd(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    lse = query.new_empty(query.shape[:3], dtype=reference.softmax_dtype(query.dtype))
    for rows in _chunks(query.shape[2]):
        lse[:, :, rows] = torch.logsumexp(
            reference.scores(query[:, :, rows], key, valid, scale), dim=-1
        )
    return lse


@torch.library.impl(LIBRARY, "attention_lse_bwd", "CompositeExplicitAutograd")
def _attention_lse_bwd(
    dlse: Tensor, query: Tensor, key: Tensor, valid: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    dquery = query.new_empty(query.shape)
    dkey = key.new_zeros(key.shape, dtype=dlse.dtype)
    for rows in _chunks(query.shape[2]):
        p = torch.softmax(reference.scores(query[:, :, rows], key, valid, scale), dim=-1)
        dscores = scale * (p * dlse[:, :, rows, None])
        dquery[:, :, rows] = (dscores @ key.to(dlse.dtype)).to(query.dtype)
        dkey += dscores.mT @ query[:, :, rows].to(dlse.dtype)
    return dquery, dkey if dkey.dtype == key.dtype else dkey.to(key.dtype)


def _chunks(rows: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, rows, CHUNK)]


@torch.library.register_fake("mbt_fast::attention_lse_fwd", lib=LIBRARY)
def _(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    return query.new_empty(query.shape[:3], dtype=reference.softmax_dtype(query.dtype))


@torch.library.register_fake("mbt_fast::attention_lse_bwd", lib=LIBRARY)
def _(
    dlse: Tensor, query: Tensor, key: Tensor, valid: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape)


@torch.library.register_vmap("mbt_fast::attention_lse_fwd", lib=LIBRARY)
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    lse = attention_lse_fwd(*fold(info.batch_size, in_dims, args))
    return lse.unflatten(0, (info.batch_size, -1)), 0


@torch.library.register_vmap("mbt_fast::attention_lse_bwd", lib=LIBRARY)
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    grads = attention_lse_bwd(*fold(info.batch_size, in_dims, args))
    return tuple(grad.unflatten(0, (info.batch_size, -1)) for grad in grads), (0, 0)


attention_lse_fwd = torch.ops.mbt_fast.attention_lse_fwd.default
attention_lse_bwd = torch.ops.mbt_fast.attention_lse_bwd.default
