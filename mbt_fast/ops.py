"""Operators of our own: schemas, fake kernels, batching rules. Needs torch only.

Registered by ``define``/``impl``, a quarter of the cost of ``custom_op`` per call. An operator here
is not differentiable; ``autograd`` holds the Functions around them, ``flop_formulas`` their cost.

``attention_lse``: the log-sum-exp of attention scores, which torch's fused attention does not
return. ``attention_lse_fwd`` never holds more than ``CHUNK`` rows of the score matrix at once, in
float32 (float64 for float64), and ``attention_lse_bwd`` recomputes them.
"""

from typing import Any

import torch
from torch import Tensor

from mbt_fast import flop_formulas, reference

NAMESPACE = "mbt_fast"
CHUNK = 256  # query rows whose scores exist at a time

_library = torch.library.Library(NAMESPACE, "DEF")
_library.define("attention_lse_fwd(Tensor query, Tensor key, Tensor? valid, float scale) -> Tensor")
_library.define(
    "attention_lse_bwd(Tensor dlse, Tensor lse, Tensor query, Tensor key, Tensor? valid, "
    "float scale) -> (Tensor, Tensor)"
)


def _scores(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    wide = reference.softmax_dtype(query.dtype)
    scores = scale * (query.to(wide) @ key.to(wide).mT)
    if valid is None:
        return scores
    return scores.masked_fill(~reference.attended(valid)[:, None, None, :], float("-inf"))


@torch.library.impl(_library, "attention_lse_fwd", "CompositeExplicitAutograd")
def _attention_lse_fwd(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    lse = query.new_empty(query.shape[:3], dtype=reference.softmax_dtype(query.dtype))
    for rows in _chunks(query.shape[2]):
        lse[:, :, rows] = torch.logsumexp(_scores(query[:, :, rows], key, valid, scale), dim=-1)
    return lse


@torch.library.impl(_library, "attention_lse_bwd", "CompositeExplicitAutograd")
def _attention_lse_bwd(
    dlse: Tensor, lse: Tensor, query: Tensor, key: Tensor, valid: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    dquery = query.new_empty(query.shape)
    dkey = key.new_zeros(key.shape, dtype=lse.dtype)
    for rows in _chunks(query.shape[2]):
        scores = _scores(query[:, :, rows], key, valid, scale)
        p = torch.exp(scores - lse[:, :, rows, None])
        dscores = scale * (p * dlse[:, :, rows, None])
        dquery[:, :, rows] = (dscores @ key.to(lse.dtype)).to(query.dtype)
        dkey += dscores.mT @ query[:, :, rows].to(lse.dtype)
    return dquery, dkey if dkey.dtype == key.dtype else dkey.to(key.dtype)


def _chunks(rows: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, rows, CHUNK)]


@torch.library.register_fake(f"{NAMESPACE}::attention_lse_fwd", lib=_library)
def _(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    return query.new_empty(query.shape[:3], dtype=reference.softmax_dtype(query.dtype))


@torch.library.register_fake(f"{NAMESPACE}::attention_lse_bwd", lib=_library)
def _(
    dlse: Tensor, lse: Tensor, query: Tensor, key: Tensor, valid: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape)


@torch.library.register_vmap(f"{NAMESPACE}::attention_lse_fwd", lib=_library)
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    lse = attention_lse_fwd(*_fold(info.batch_size, in_dims, args))
    return lse.unflatten(0, (info.batch_size, -1)), 0


@torch.library.register_vmap(f"{NAMESPACE}::attention_lse_bwd", lib=_library)
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    grads = attention_lse_bwd(*_fold(info.batch_size, in_dims, args))
    return tuple(grad.unflatten(0, (info.batch_size, -1)) for grad in grads), (0, 0)


def _fold(size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> list[Any]:
    """Fold the dimension that vmap maps over into the batch, the first dimension of each tensor."""
    folded = []
    for arg, dim in zip(args, in_dims, strict=True):
        if isinstance(arg, Tensor):
            mapped = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            arg = mapped.flatten(0, 1)
        folded.append(arg)
    return folded


attention_lse_fwd = torch.ops.mbt_fast.attention_lse_fwd.default
attention_lse_bwd = torch.ops.mbt_fast.attention_lse_bwd.default

flop_formulas.install()
