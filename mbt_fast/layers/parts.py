"""Which streams take one call of an op, and whether it may use weights in place of modules."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mbt_fast.layers.block import Mlp, apply_norm
from mbt_fast.layers.drop_path import Keep
from mbt_fast.layers.hooks import are_unmodified
from mbt_fast.layers.recompute import Affine
from mbt_fast.ops.operator import Entries

Linear = nn.Linear | Mlp | Affine  # a module, or parameters
Part = tuple[slice, bool]  # streams that take one call, and whether their modules are unmodified


def parts_of(
    xs: Sequence[Tensor],
    branches: Entries,
    norms: Sequence[nn.LayerNorm],
    linears: Sequence[Linear],
    *,
    apart: bool,
) -> list[Part]:
    """Which streams take one call, and whether it may use weights in place of their modules."""
    eps = [getattr(norm, "eps", None) for norm in norms]  # a replaced norm may have none
    first = (xs[0].shape[0], xs[0].dtype, eps[0])
    alike = all((x.shape[0], x.dtype, e) == first for x, e in zip(xs, eps, strict=True))
    alike = alike and not apart
    parts = [slice(None)] if alike else one_by_one(xs)
    fits = [fit(xs[part], branches[part], norms[part], linears[part]) for part in parts]
    if all(fits):
        return [(part, True) for part in parts]
    if alike and len(xs) > 1:
        parts = one_by_one(xs)
        fits = [fit(xs[part], branches[part], norms[part], linears[part]) for part in parts]
    return list(zip(parts, fits, strict=True))


def fit(
    xs: Sequence[Tensor],
    branches: Entries,
    norms: Sequence[nn.LayerNorm],
    linears: Sequence[Linear],
) -> bool:
    """Whether modules are as they were built, and of dtypes that the ops take."""
    modules = [each for each in linears if not isinstance(each, Affine)]
    if not are_unmodified((nn.LayerNorm, norms), (nn.Linear, modules)):
        return False
    for x, branch, norm in zip(xs, branches, norms, strict=True):
        if norm.weight is None or norm.bias is None:
            return False
        if norm.weight.dtype not in (x.dtype, torch.promote_types(x.dtype, torch.float32)):
            return False
        if branch is not None and torch.promote_types(x.dtype, branch.dtype) != x.dtype:
            return False
    return True


def call_modules(
    xs: Sequence[Tensor],
    branches: Entries,
    masks: Entries,
    norms: Sequence[nn.LayerNorm],
    linears: Sequence[Linear],
) -> tuple[list[Tensor], list[Tensor]]:
    """``add_norm_linear`` by calling norms and Linears."""
    each = zip(xs, branches, masks, strict=True)
    sums = [x if branch is None else Keep(mask=mask).add(x, branch) for x, branch, mask in each]
    normed = [apply_norm(norm, total) for norm, total in zip(norms, sums, strict=True)]
    return sums, [
        linear(x, *module) if isinstance(module, Affine) else module(x)
        for x, module in zip(normed, linears, strict=True)
    ]


def affines(modules: Sequence[Any]) -> list[Affine]:
    """The parameters of Linears or LayerNorms."""
    return [m if isinstance(m, Affine) else Affine(m.weight, m.bias) for m in modules]


def one_by_one(xs: Sequence[object]) -> list[slice]:
    """A slice for each entry."""
    return [slice(index, index + 1) for index in range(len(xs))]
