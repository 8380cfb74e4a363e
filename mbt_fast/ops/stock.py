"""Stock PyTorch as a backend: runs everywhere, and is the yardstick.

Torch's functions are used plainly, as a user would write it, and not behind an operator of ours:
torch then chooses its fastest kernel, autograd, ``torch.compile``, export and FLOP counting see
through it, and a comparison with it is fair. Where no row is padding there is no mask, which the
flash kernels need. ``<op>_bwd`` are the backwards for callers that recompute activations, in
differentiable operations.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mbt_fast.ops import vmap
from mbt_fast.ops.operator import Entries, Groups, Operator
from mbt_fast.ops.softmax import attended, scores
from mbt_fast.ops.streams import expand, wide_dtype

CHUNK = 256  # query rows whose scores exist at a time


def attention(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float
) -> Tensor:
    """``softmax.attention`` by torch's own function."""
    mask = None if valid is None else attended(valid)[:, None, None, :]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def log_sum_exp(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    """``softmax.log_sum_exp``, which torch's attention does not return.

    Costs the product of query and key once more, never holds more than ``CHUNK`` rows of the score
    matrix, and is differentiable once.
    """
    (lses,) = ATTENTION_LSE.run([query], [key], [valid], scale)
    return lses[0]


class AttentionLse(Operator):
    """Log-sum-exp of attention scores, of lists with one entry: ``[B, H, S, D]``, ``[B, H, K, D]``.

    Returns float32 ``[B, H, S]``, or float64 for float64 inputs.
    """

    name = "attention_lse"
    forward = "Tensor[] query, Tensor[] key, Tensor?[] valid, float scale"
    backward = "Tensor?[] dlse, Tensor[] query, Tensor[] key, Tensor?[] valid, float scale"
    lists, inputs, outputs, groups = 3, 2, 1, 1

    def results(self, query: Sequence[Tensor], *rest: Any) -> Groups:
        """The log-sum-exp."""
        return ([q.new_empty(q.shape[:3], dtype=wide_dtype(q.dtype)) for q in query],)

    def gradients(self, dlse: Any, query: Any, key: Any, *rest: Any) -> Groups:
        """Of query and key."""
        return [q.new_empty(q.shape) for q in query], [k.new_empty(k.shape) for k in key]

    def save(self, lists: Groups, results: Groups) -> Groups:
        """The arguments; the backward computes the scores again."""
        return lists

    def differentiate(self, bwd: Any, grads: Groups, saved: Groups, *options: Any) -> Groups:
        """Gradients of query and key."""
        dquery, dkey = bwd(grads[0], *saved, *options)
        return [dquery], [dkey]

    def flops(self, query: Any, key: Any, *rest: Any, **kwargs: Any) -> int:
        """The scores."""
        return sum(2 * q[0] * q[1] * q[2] * k[2] * q[3] for q, k in zip(query, key, strict=True))

    def flops_backward(self, dlse: Any, query: Any, key: Any, *rest: Any, **kwargs: Any) -> int:
        """The scores again, and the gradients of query and key."""
        return 3 * self.flops(query, key)

    def batching_rules(self, fwd: Any, bwd: Any) -> tuple[vmap.Rule, vmap.Rule]:
        """The mapped dimension is a part of the batch."""
        first = lambda index, args: 0  # noqa: E731
        return vmap.fold(fwd, {}, first), vmap.fold(bwd, {}, first)


def attention_lse_fwd(
    lse: Sequence[Tensor],
    query: Sequence[Tensor],
    key: Sequence[Tensor],
    valid: Entries,
    scale: float,
) -> None:
    """Fill the log-sum-exp."""
    for rows in _chunks(query[0]):
        wide = scores(query[0][:, :, rows], key[0], valid[0], scale)
        lse[0][:, :, rows] = torch.logsumexp(wide, dim=-1)


def attention_lse_bwd(
    dquery: Sequence[Tensor],
    dkey: Sequence[Tensor],
    dlse: Sequence[Tensor],
    query: Sequence[Tensor],
    key: Sequence[Tensor],
    valid: Entries,
    scale: float,
) -> None:
    """Fill the gradients of query and key."""
    wide = dlse[0].dtype
    total = torch.zeros_like(key[0], dtype=wide)
    for rows in _chunks(query[0]):
        p = torch.softmax(scores(query[0][:, :, rows], key[0], valid[0], scale), dim=-1)
        dscores = scale * (p * dlse[0][:, :, rows, None])
        dquery[0][:, :, rows] = (dscores @ key[0].to(wide)).to(query[0].dtype)
        total += dscores.mT @ query[0][:, :, rows].to(wide)
    dkey[0].copy_(total)


def _chunks(query: Tensor) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, query.shape[2], CHUNK)]


ATTENTION_LSE = AttentionLse().register("sdpa", attention_lse_fwd, attention_lse_bwd)


def bias_gelu_bwd(
    douts: Sequence[Tensor], xs: Sequence[Tensor], biases: Entries, approximate: str
) -> list[Tensor]:
    """Gradients of ``xs``, and of the biases, empty where there is none."""
    dxs, dbiases = [], []
    for dout, x, bias in zip(douts, xs, biases, strict=True):
        total = x if bias is None else x + bias
        grad = torch.ops.aten.gelu_backward(dout.to(total.dtype), total, approximate=approximate)
        dxs.append(grad.to(x.dtype))
        dbiases.append(
            x.new_empty(0) if bias is None else grad.flatten(0, -2).sum(dim=0).to(bias.dtype)
        )
    return [*dxs, *dbiases]


def add_layer_norm_bwd(
    dsums: Entries,
    dnormed: Sequence[Tensor],
    sums: Sequence[Tensor],
    stats: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[Tensor],
    keep: Entries,
    lengths: Entries,
    n_bottlenecks: int,
) -> list[Tensor]:
    """Gradients of streams, branches, weights and biases, where no slots are shared.

    Those of branches are empty without a mask, where they are the streams'.
    """
    dxs, dbranches, dweights, dbiases = [], [], [], []
    for dsum, dout, total, (mean, rstd), weight, mask in zip(
        dsums, dnormed, sums, stats, weights, keep, strict=True
    ):
        wide = total.to(weight.dtype)
        dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
            dout.to(wide.dtype), wide, weight.shape, mean, rstd, weight, weight, [True] * 3
        )
        dx = dx.to(total.dtype) if dsum is None else dx.to(total.dtype) + dsum
        dxs.append(dx)
        dbranches.append(dx.new_empty(0) if mask is None else dx * expand(mask, dx).to(dx.dtype))
        dweights.append(dweight)
        dbiases.append(dbias)
    return [*dxs, *dbranches, *dweights, *dbiases]


def linear_bwd(
    douts: Sequence[Tensor], xs: Entries, weights: Entries, biases: Sequence[bool]
) -> list[Tensor]:
    """Gradients of rows, weights and biases; empty where what they need, or a bias, is missing."""
    dxs, dweights, dbiases = [], [], []
    for dout, x, weight, has_bias in zip(douts, xs, weights, biases, strict=True):
        flat, nothing = dout.flatten(0, -2), dout.new_empty(0)
        dxs.append(nothing if weight is None else dout @ weight)
        dweights.append(nothing if x is None else flat.T @ x.flatten(0, -2))
        dbiases.append(flat.sum(dim=0) if has_bias else nothing)
    return [*dxs, *dweights, *dbiases]
