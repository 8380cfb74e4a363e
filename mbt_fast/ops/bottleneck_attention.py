"""``bottleneck_attention``: self-attention of every stream of an MBT fusion layer in one call."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from mbt_fast.ops import stock, vmap
from mbt_fast.ops.autocast import autocast
from mbt_fast.ops.backends import on_every_backend
from mbt_fast.ops.checks import (
    MAX_HEAD_DIM,
    MIN_HEAD_DIM,
    check_alike,
    check_lengths,
    check_n_bottlenecks,
    check_scale,
    check_sequence,
    check_tensor,
)
from mbt_fast.ops.dispatch import Call, select
from mbt_fast.ops.operator import Entries, Groups, Implementation, Operator, filled
from mbt_fast.ops.softmax import attention, heads_first, log_sum_exp, mask_lse
from mbt_fast.ops.streams import drop_padding, share_slots, valid_rows


@overload
def bottleneck_attention(
    qkv: Sequence[Tensor],
    n_bottlenecks: int,
    *,
    lengths: Entries | None = ...,
    update: str | None = ...,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
    backend: str = ...,
) -> list[Tensor]: ...


@overload
def bottleneck_attention(
    qkv: Sequence[Tensor],
    n_bottlenecks: int,
    *,
    lengths: Entries | None = ...,
    update: str | None = ...,
    scale: float | None = ...,
    return_lse: Literal[True],
    backend: str = ...,
) -> tuple[list[Tensor], list[Tensor]]: ...


def bottleneck_attention(
    qkv: Sequence[Tensor],
    n_bottlenecks: int,
    *,
    lengths: Entries | None = None,
    update: str | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> list[Tensor] | tuple[list[Tensor], list[Tensor]]:
    """Attend inside each stream, own tokens and slots alike: the attention of an MBT fusion layer.

    Equal, for every stream, to::

        q, k, v = stream.unbind(2)                                        # [B, S, H, D] each
        out = softmax(scale * q @ k.mT) @ v                               # per head

    and, with ``update="mean"``, followed by the shared update of Eq. 9 in "Attention Bottlenecks
    for Multimodal Fusion" (Nagrani et al., 2021)::

        out[m][:, -P:] = mean over the present streams m of out[m][:, -P:]

    Shapes: ``M`` streams, ``B`` batch, ``S = N + P`` rows of a stream (``N`` own tokens, then ``P``
    slots, its copy of the bottleneck tokens), ``H`` heads, ``D`` head dimension.

    Args:
        qkv: ``M`` tensors ``[B, S_m, 3, H, D]``, ``D`` in 16..128, float16, bfloat16, float32 or
            float64, with any strides; what a Linear of width ``3 * H * D`` returns, viewed. Kernels
            read it in place if the last stride is 1.
        n_bottlenecks: ``P >= 0``, the last ``P`` rows of each stream.
        lengths: ``M`` entries, each ``None`` (no padding) or int32 or int64 ``[B]``: how many own
            tokens are valid, from 0 to ``N``; 0 means that the stream is absent for this example,
            slots included. Values are checked on the CPU; on a GPU, where that would wait for the
            device, larger ones act as ``N`` and negative ones as 0; so too under ``torch.compile``.
        update: ``None``, or ``"mean"`` for the shared update. The paper takes the mean after the
            MLP, so its layers use ``None``.
        scale: Factor on the scores. ``None`` means ``D ** -0.5``.
        return_lse: Also return the log-sum-exp of the scores.
        backend: ``"auto"`` or a name of ``mbt_fast.dispatch.BACKENDS``. A named backend runs or
            raises; ``mbt_fast.dispatch.explain`` takes the same arguments and gives the reasons.

    Returns:
        ``M`` tensors ``[B, S_m, H, D]`` in the dtype of ``qkv`` (under autocast, its dtype). Rows
        of padding and absent streams are zero, and so is their gradient. With ``return_lse`` a pair
        with ``M`` tensors ``[B, H, S_m]``, float32 (float64 for float64), natural logarithm,
        ``-inf`` on padding and absent streams.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value is out of range; the message names it.
        mbt_fast.dispatch.BackendError: The named backend cannot run this call; the message is the
            whole table of reasons.

    Numerics:
        One softmax per row in float32 (float64 for float64). NaN and infinity in valid rows
        propagate as in ``scaled_dot_product_attention``; in padding they do not. The tolerance is
        that of ``mbt_fast.testing.assert_close_to_exact``.

    Example:
        >>> video, sound = torch.randn(2, 1573, 3, 12, 64), torch.randn(2, 405, 3, 12, 64)
        >>> [tuple(out.shape) for out in bottleneck_attention([video, sound], 4)]
        [(2, 1573, 12, 64), (2, 405, 12, 64)]
    """
    lengths = check(qkv, n_bottlenecks, lengths, update, scale, return_lse)
    outs, lses = attend(
        qkv, n_bottlenecks, lengths, update == "mean", scale, return_lse=return_lse, backend=backend
    )
    return (outs, lses) if return_lse else outs


def attend(
    qkv: Sequence[Tensor],
    n_bottlenecks: int,
    lengths: Entries,
    update_mean: bool = False,
    scale: float | None = None,
    *,
    return_lse: bool = False,
    backend: str = "auto",
) -> tuple[list[Tensor], list[Tensor]]:
    """``bottleneck_attention`` of arguments that were checked; outputs and log-sum-exps."""
    streams = autocast(qkv)
    implementation = BY_BACKEND[select(describe(streams), backend).name]
    factor = streams[0].shape[4] ** -0.5 if scale is None else float(scale)
    outs, lses, *_ = implementation.run(
        streams, lengths, n_bottlenecks, update_mean, factor, return_lse
    )
    return outs, lses


def check(
    qkv: Sequence[Tensor],
    n_bottlenecks: int,
    lengths: Sequence[Tensor | None] | None,
    update: str | None,
    scale: float | None,
    return_lse: bool,
) -> list[Tensor | None]:
    """Check the arguments of ``bottleneck_attention``; return one length per stream."""
    _check_qkv(qkv)
    check_n_bottlenecks("qkv", n_bottlenecks, qkv)
    if update not in (None, "mean"):
        raise ValueError(f"update must be None or 'mean', got {update!r}")
    check_scale(scale)
    if not isinstance(return_lse, bool):
        raise TypeError(f"return_lse must be a bool, got {return_lse!r}")
    if lengths is None:
        return [None] * len(qkv)
    return check_lengths(lengths, "qkv", qkv, n_bottlenecks)


def _check_qkv(qkv: Sequence[Tensor]) -> None:
    """Streams of one kind; short streams wait for these checks, so they read a shape once."""
    check_sequence("qkv", qkv)
    first = qkv[0]
    for index, stream in enumerate(qkv):
        name = f"qkv[{index}]"
        check_tensor(name, stream)
        shape = stream.shape
        if len(shape) != 5 or shape[2] != 3:
            raise ValueError(f"{name} must have shape [B, S, 3, H, D], got {list(shape)}")
        if stream is not first:
            check_alike(name, stream, "qkv[0]", first)
            batch, _, _, heads, head_dim = first.shape
            if shape[0] != batch or shape[3] != heads or shape[4] != head_dim:
                expected = [batch, shape[1], 3, heads, head_dim]
                raise ValueError(
                    f"{name} must have shape {expected} like qkv[0], got {list(shape)}"
                )
    head_dim = shape[4]
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(
            f"qkv must have a head dimension D of {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, got {head_dim}"
        )


def describe(qkv: Sequence[Tensor]) -> Call:
    """A call, as dispatch sees it, of streams in the dtype in which the op runs."""
    first, rows = qkv[0], None
    if not torch.compiler.is_compiling():
        rows = max([x.shape[1] for x in qkv])
    return Call("bottleneck_attention", first.device, first.dtype, rows, first.shape[4])


def _by_stream(
    attend_one: Callable[..., Tensor],
    lse_of: Callable[..., Tensor],
    qkv: Sequence[Tensor],
    lengths: Entries,
    n_bottlenecks: int,
    update_mean: bool,
    scale: float,
    return_lse: bool,
) -> Groups:
    """The meaning of the op: attention of one stream after the other, then the shared slots.

    ``attend_one`` and ``lse_of`` are ``softmax.attention`` and ``log_sum_exp``, or mean the same.
    Padding and absent streams get zeros, and ``-inf`` in the log-sum-exp.
    """
    outs, lses = [], []
    for stream, length in zip(qkv, lengths, strict=True):
        valid = None if length is None else valid_rows(length, stream.shape[1], n_bottlenecks)
        packed = stream if valid is None else drop_padding(stream, valid)
        query, key, value = heads_first(packed)
        out = attend_one(query, key, value, valid, scale).transpose(1, 2)
        outs.append(out if valid is None else drop_padding(out, valid))
        if return_lse:
            lses.append(mask_lse(lse_of(query, key, valid, scale), valid))
    if update_mean:
        outs = share_slots(outs, n_bottlenecks, lengths)
    return outs, lses


class BottleneckAttention(Operator):
    """Results: outputs, log-sum-exps, statistics of the softmax, slots before the update.

    Statistics, float32 ``[2, B, H, S_m]``, are the shift of the softmax and what each backend takes
    for its sum. Slots, ``[M, B, P, H, D]`` in an order of the backend, are empty without update.
    """

    name = "bottleneck_attention"
    forward = (
        "Tensor[] qkv, Tensor?[] lengths, int n_bottlenecks, bool update_mean, float scale, "
        "bool return_lse"
    )
    backward = (
        "Tensor[] douts, Tensor?[] dlses, Tensor[] outs, Tensor[] stats, Tensor[] slots, "
        "Tensor[] qkv, Tensor?[] lengths, int n_bottlenecks, bool update_mean, float scale"
    )
    lists, inputs, outputs, groups = 2, 1, 2, 4

    def results(self, qkv: Any, lengths: Any, n_bottlenecks: int, mean: bool, *rest: Any) -> Groups:
        """Outputs ``[B, S_m, H, D]``, log-sum-exps float32 ``[B, H, S_m]``, and the rest."""
        batch, _, _, heads, head_dim = qkv[0].shape
        outs = [x.new_empty(batch, x.shape[1], heads, head_dim) for x in qkv]
        lses = [x.new_empty(batch, heads, x.shape[1], dtype=torch.float32) for x in qkv]
        stats = [lse.new_empty(2, *lse.shape) for lse in lses]
        count = len(qkv) if mean and n_bottlenecks > 0 else 0
        return outs, lses, stats, [qkv[0].new_empty(count, batch, n_bottlenecks, heads, head_dim)]

    def gradients(self, *arguments: Any) -> Groups:
        """Packed ``[B, S_m, 3, H, D]``, contiguous."""
        return ([x.new_empty(x.shape) for x in arguments[5]],)

    def save(self, lists: Groups, results: Groups) -> Groups:
        """All but the log-sum-exps."""
        outs, _, stats, slots = results
        return outs, stats, slots, *lists

    def differentiate(self, bwd: Any, grads: Groups, saved: Groups, *options: Any) -> Groups:
        """Packed gradients of the streams."""
        (douts, dlses), outs = grads, saved[0]
        return (bwd(filled(douts, outs), dlses, *saved, *options[:-1]),)

    def flops(self, qkv: Any, *shapes: Any, **kwargs: Any) -> int:
        """Two products inside each stream ``[B, S, 3, H, D]``."""
        return sum(4 * b * h * s * s * d for b, s, _, h, d in qkv)

    def flops_backward(self, *shapes: Any, **kwargs: Any) -> int:
        """Five products, what a backward needs, though one of two passes may compute some twice."""
        return sum(10 * b * h * s * s * d for b, s, _, h, d in shapes[5])

    def batching_rules(self, fwd: Any, bwd: Any) -> tuple[vmap.Rule, vmap.Rule]:
        """The mapped dimension is a part of the batch; statistics and slots have that second."""
        of_fwd = vmap.fold(fwd, {}, lambda index, args: int(index >= 2 * len(args[0])))
        return of_fwd, vmap.fold(bwd, {3: 1, 4: 1}, lambda index, args: 0)


BY_BACKEND = on_every_backend(
    BottleneckAttention(),
    stock=Implementation(partial(_by_stream, stock.attention, stock.log_sum_exp)),
    reference=Implementation(partial(_by_stream, attention, log_sum_exp)),
)
