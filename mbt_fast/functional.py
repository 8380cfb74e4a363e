"""Public ops. The meaning of a call is checked here, and its backend chosen."""

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor

from mbt_fast import dispatch, reference, sdpa
from mbt_fast.autocast import autocast_dtype
from mbt_fast.autograd import add_layer_norm as norm_kernel
from mbt_fast.autograd import bias_gelu as gelu_kernel
from mbt_fast.autograd import residual_add as residual_kernel
from mbt_fast.autograd.bottleneck_attention import run_kernel
from mbt_fast.validation import (
    check_add_layer_norm,
    check_bias_gelu,
    check_bottleneck_attention,
    check_dense_attention,
    check_residual_add,
    check_share_slots,
)

Lengths = Sequence[Tensor | None]


@overload
def bottleneck_attention(
    qkv: Sequence[Tensor],
    n_bottlenecks: int,
    *,
    lengths: Lengths | None = ...,
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
    lengths: Lengths | None = ...,
    update: str | None = ...,
    scale: float | None = ...,
    return_lse: Literal[True],
    backend: str = ...,
) -> tuple[list[Tensor], list[Tensor]]: ...


def bottleneck_attention(
    qkv: Sequence[Tensor],
    n_bottlenecks: int,
    *,
    lengths: Lengths | None = None,
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
        lengths: ``M`` entries, each ``None`` (no padding) or int32 ``[B]``: how many own tokens are
            valid, from 0 to ``N``; 0 means that the stream is absent for this example, slots
            included. Values are checked on the CPU; on a GPU, where that would wait for the device,
            larger ones act as ``N`` and negative ones as 0; so too under ``torch.compile``.
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
    lengths = check_bottleneck_attention(qkv, n_bottlenecks, lengths, update, scale, return_lse)
    streams = [_autocast(stream) for stream in qkv]
    name = dispatch.select(dispatch.Call.of("bottleneck_attention", streams), backend)
    factor = streams[0].shape[-1] ** -0.5 if scale is None else float(scale)
    if name == "reference":
        outs, lses = reference.bottleneck_attention(
            streams, n_bottlenecks, lengths, update, factor, return_lse
        )
    elif name != "sdpa":
        outs, lses = run_kernel(streams, n_bottlenecks, lengths, update, factor, name)
    else:
        outs, lses = sdpa.bottleneck_attention(
            streams, n_bottlenecks, lengths, update, factor, return_lse
        )
    return (outs, lses) if return_lse else outs


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    valid: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """``softmax(scale * query @ key.mT) @ value``: the attention of vanilla fusion (Eq. 4-6).

    The queries of one modality may attend to the keys of all: the pairwise attention that
    bottlenecks replace, and that they are measured against.

    Args:
        query: ``[B, H, S, D]``, floating point.
        key: ``[B, H, K, D]``.
        value: ``[B, H, K, D]``.
        valid: bool ``[B, K]``, the keys that take part, or ``None`` for all. Where no key is valid
            the output is zero.
        scale: Factor on the scores. ``None`` means ``D ** -0.5``.
        backend: ``"auto"``, ``"sdpa"`` or ``"reference"``.

    Returns:
        ``[B, H, S, D]``, in the dtype of ``query`` (under autocast, its dtype).

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape or device disagrees with ``query``.
        mbt_fast.dispatch.BackendError: The named backend cannot run this call.
    """
    check_dense_attention(query, key, value, valid, scale)
    query, key, value = _autocast(query), _autocast(key), _autocast(value)
    name = dispatch.select(dispatch.Call.of("dense_attention", [query]), backend)
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    attend = reference.attention if name == "reference" else sdpa.attention
    if valid is None:
        return attend(query, key, value, None, factor)
    left_out = ~valid[:, None, :, None]
    key, value = key.masked_fill(left_out, 0), value.masked_fill(left_out, 0)
    out = attend(query, key, value, valid, factor)
    return out.masked_fill(~valid.any(dim=-1)[:, None, None, None], 0)


def share_slots_(
    streams: Sequence[Tensor], n_bottlenecks: int, *, lengths: Lengths | None = None
) -> None:
    """Write the mean of the slots over the present streams into every stream, in place (Eq. 9).

    Args:
        streams: ``M`` tensors ``[B, S_m, C]`` whose last ``P`` rows are the slots.
        n_bottlenecks: ``P``; 0 does nothing.
        lengths: ``M`` entries, each ``None`` or int32 ``[B]``; 0 means absent, and the slots of an
            absent stream take no part in the mean. They receive it all the same.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value is out of range; the message names it.
    """
    lengths = check_share_slots(streams, n_bottlenecks, lengths)
    if n_bottlenecks == 0 or len(streams) == 1:
        return
    reference.write_mean_slots(streams, n_bottlenecks, lengths)


def bias_gelu(
    x: Tensor, bias: Tensor | None = None, *, approximate: str = "tanh", backend: str = "auto"
) -> Tensor:
    """GELU of a Linear's output: ``gelu(x + bias)``, the MLP's activation.

    Equal to::

        torch.nn.functional.gelu(x + bias, approximate=approximate)

    Only ``x`` and ``bias`` are kept for the backward, which recomputes the rest.

    Args:
        x: ``[..., C]``, floating point, any strides.
        bias: ``[C]``, in the dtype of ``x`` or, for 16-bit types, in float32; ``None`` adds
            nothing.
        approximate: ``"tanh"``, as in the official MBT, or ``"none"`` for the error function.
        backend: ``"auto"``, ``"triton"`` (the tanh form), ``"cpu"`` or ``"reference"``.

    Returns:
        A tensor like ``x``. Autocast does not change its dtype.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value is out of range; the message names it.
        mbt_fast.dispatch.BackendError: The named backend cannot run this call.

    Numerics:
        Sum and GELU in float32 on kernels, rounded once. The bias' gradient is summed in
        float32 in an order that depends on the shape alone.

    Source:
        Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415.
    """
    check_bias_gelu(x, bias, approximate)
    name = dispatch.select(dispatch.Call.of_layer(dispatch.GELU[approximate], [x]), backend)
    if name == "reference":
        return reference.bias_gelu(x, bias, approximate)
    return gelu_kernel.bias_gelu(x, bias, approximate, name)


def add_layer_norm(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor | None] | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    keep: Sequence[Tensor | None] | None = None,
    eps: float = 1e-6,
    n_bottlenecks: int = 0,
    lengths: Lengths | None = None,
    backend: str = "auto",
) -> tuple[list[Tensor], list[Tensor]]:
    """Add residual branches, share the slots, normalise: what lies between two Linears of a layer.

    Equal, for every stream, to::

        total = stream + torch.where(keep[:, None, None], branch, 0)      # [B, S, C]
        total[:, -P:] = mean over the present streams of total[:, -P:]    # Eq. 9, if P > 0
        normed = torch.nn.functional.layer_norm(total, (C,), weight, bias, eps)

    Args:
        streams: ``M`` tensors ``[B, S_m, C]``, floating point, any strides; the kernels read them
            in place if the last stride is 1.
        branches: ``M`` entries like ``streams``, or ``None`` where nothing is added; ``None`` for
            no branch at all. Under autocast a branch is cast to its stream's dtype.
        weights: ``M`` tensors ``[C]``, in the dtype of the streams or, for 16-bit types, float32.
        biases: ``M`` tensors like ``weights``.
        keep: ``M`` entries, each ``None`` (for all) or bool ``[B]``: the examples that the branch
            is added for, unscaled. That of the others is not read; its gradient is zero.
        eps: Added to the variance.
        n_bottlenecks: ``P >= 0``, the last ``P`` rows of each stream, which become their mean over
            the streams; 0 leaves the streams to themselves.
        lengths: ``M`` entries, each ``None`` or int32 ``[B]``; 0 means that the stream is absent
            for this example: its slots take no part in the mean, and become zero. Own rows are
            normalised whether they are valid or not.
        backend: ``"auto"``, ``"triton"`` (at most 8192 channels), ``"cpu"`` or ``"reference"``.

    Returns:
        ``M`` sums, the stream itself where nothing is added and no slot is shared, and ``M``
        normalised sums, all ``[B, S_m, C]`` in the dtype of the streams, under autocast too.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value is out of range; the message names it.
        mbt_fast.dispatch.BackendError: The named backend cannot run this call.

    Numerics:
        What is returned as sum, rounded, is what is normalised. Statistics and sums in float32;
        gradients of weights and biases in an order that depends on the shape alone.

    Source:
        Eq. 9 of "Attention Bottlenecks for Multimodal Fusion" (Nagrani et al., 2021), and Ba et
        al., "Layer Normalization", arXiv 1607.06450.
    """
    branches, keep, lengths = check_add_layer_norm(
        streams, branches, weights, biases, keep, eps, n_bottlenecks, lengths
    )
    pairs = zip(streams, branches, strict=True)
    branches = [branch if branch is None else branch.to(s.dtype) for s, branch in pairs]
    name = dispatch.select(dispatch.Call.of_layer("add_layer_norm", streams), backend)
    call = (streams, branches, weights, biases, keep, lengths, n_bottlenecks, float(eps))
    if name == "reference":
        return reference.add_layer_norm(*call)
    return norm_kernel.add_layer_norm(*call, name)


def residual_add(
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    *,
    keep: Sequence[Tensor | None] | None = None,
    n_bottlenecks: int = 0,
    lengths: Lengths | None = None,
    backend: str = "auto",
) -> list[Tensor]:
    """Add residual branches and share the slots: the end of a fusion layer.

    Equal, for every stream, to::

        total = stream + torch.where(keep[:, None, None], branch, 0)      # [B, S, C]
        total[:, -P:] = mean over the present streams of total[:, -P:]    # Eq. 9, if P > 0, M > 1

    Nothing is kept for the backward but ``keep`` and ``lengths``.

    Args:
        streams: ``M`` tensors ``[B, S_m, C]``, floating point, any strides; the kernels read them
            in place if the last stride is 1.
        branches: ``M`` tensors like ``streams``. Under autocast a branch is cast to its stream's
            dtype.
        keep: ``M`` entries, each ``None`` (for all) or bool ``[B]``: the examples that the branch
            is added for, unscaled. That of the others is not read; its gradient is zero.
        n_bottlenecks: ``P >= 0``, the last ``P`` rows of each stream, which become their mean over
            the streams; 0 leaves the streams to themselves.
        lengths: ``M`` entries, each ``None`` or int32 ``[B]``; 0 means that the stream is absent
            for this example: its slots take no part in the mean. They receive it all the same, as
            from ``share_slots_``; ``add_layer_norm`` makes them zero. Where no stream is present
            the mean is zero.
        backend: ``"auto"``, ``"triton"`` (at most 8192 channels), ``"cpu"`` or ``"reference"``.

    Returns:
        ``M`` new tensors ``[B, S_m, C]`` in the dtype of the streams, under autocast too.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value is out of range; the message names it.
        mbt_fast.dispatch.BackendError: The named backend cannot run this call.

    Numerics:
        Sums in float32; the mean in float32 and in the order of the streams.

    Source:
        Eq. 9 of "Attention Bottlenecks for Multimodal Fusion" (Nagrani et al., 2021), and Huang
        et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382.
    """
    keep, lengths = check_residual_add(streams, branches, keep, n_bottlenecks, lengths)
    branches = [branch.to(s.dtype) for s, branch in zip(streams, branches, strict=True)]
    shared = n_bottlenecks if len(streams) > 1 else 0
    fuses = shared != 0 or any(kept is not None for kept in keep)
    name = dispatch.select(dispatch.Call.of_layer(dispatch.RESIDUAL[fuses], streams), backend)
    call = (streams, branches, keep, lengths, shared)
    if name == "reference":
        return reference.residual_add(*call)
    return residual_kernel.residual_add(*call, name)


def _autocast(tensor: Tensor) -> Tensor:
    return tensor.to(autocast_dtype(tensor))
