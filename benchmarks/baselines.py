"""What a user could write instead, on stock PyTorch: what ours is measured against.

Attention takes packed streams ``[B, S_m, 3, H, D]``. Layers and models take the weights of ours,
and compute every row. Beside bottleneck fusion there are the ways to fuse that it replaces, each as
its equations ask, and the official code's way, which computes rows that it throws away: that one is
always called "vanilla, official", and is never a baseline.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import gelu, linear, pad, scaled_dot_product_attention

from mbt_fast import MBT

Streams = dict[str, Tensor]
Attend = Callable[..., Sequence[Tensor]]
Fused = tuple[Streams, Tensor | None]  # own tokens, and bottleneck tokens
Fuse = Callable[[Any, Streams, Tensor | None], Fused]
SHARED = "shared"  # the stream of joined tokens, and the block that all modalities share


# Attention


def sdpa(*streams: Tensor) -> list[Tensor]:
    """One call of torch's attention per stream, on views of packed qkv."""
    return [_attend(stream) for stream in streams]


def sdpa_by(kernel: SDPBackend) -> Attend:
    """The same by one of torch's kernels."""

    def run(*streams: Tensor) -> list[Tensor]:
        with sdpa_kernel(kernel):
            return sdpa(*streams)

    return run


def _attend(stream: Tensor, mask: Tensor | None = None) -> Tensor:
    query, key, value = (part.transpose(1, 2) for part in stream.unbind(2))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def padded_batch(*streams: Tensor) -> list[Tensor]:
    """All streams as one batch, padded to the longest, padding masked."""
    batch, longest = streams[0].shape[0], max(stream.shape[1] for stream in streams)
    joined = torch.cat([pad(s, (0, 0) * 3 + (0, longest - s.shape[1])) for s in streams])
    rows = torch.tensor([s.shape[1] for s in streams], device=joined.device)
    valid = torch.arange(longest, device=joined.device) < rows.repeat_interleave(batch)[:, None]
    outs = _attend(joined, valid[:, None, None]).split(batch)
    return [out[:, : s.shape[1]] for out, s in zip(outs, streams, strict=True)]


def flex(*streams: Tensor) -> Sequence[Tensor]:
    """FlexAttention, compiled, over the joined rows with a block mask that keeps streams apart."""
    sizes = tuple(stream.shape[1] for stream in streams)
    joined = torch.cat(streams, dim=1)
    query, key, value = (part.transpose(1, 2) for part in joined.unbind(2))
    out = _compiled_flex()(query, key, value, block_mask=_block_mask(sizes, joined.device))
    return out.transpose(1, 2).split(sizes, dim=1)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@cache
def _block_mask(sizes: tuple[int, ...], device: torch.device) -> object:
    from torch.nn.attention.flex_attention import create_block_mask

    owner = torch.arange(len(sizes), device=device).repeat_interleave(
        torch.tensor(sizes, device=device)
    )

    def same_stream(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return owner[q] == owner[k]

    return create_block_mask(same_stream, None, None, sum(sizes), sum(sizes), device=str(device))


def varlen(*streams: Tensor) -> list[Tensor]:
    """Torch's attention of variable length over the rows of all streams and examples, packed."""
    from torch.nn.attention.varlen import varlen_attn

    rows, sizes = _packed(streams)
    ends = torch.tensor([0, *sizes], device=rows.device).cumsum(0).to(torch.int32)
    query, key, value = rows.unbind(1)
    out = varlen_attn(query, key, value, ends, ends, max(sizes), max(sizes))
    return _unpacked(out[0] if isinstance(out, tuple) else out, streams)


def xformers(*streams: Tensor) -> list[Tensor]:
    """Attention of xformers, with a block-diagonal mask over the packed rows."""
    from xformers.ops import fmha, memory_efficient_attention

    rows, sizes = _packed(streams)
    mask = fmha.attn_bias.BlockDiagonalMask.from_seqlens(sizes)
    return _unpacked(memory_efficient_attention(*rows[None].unbind(2), attn_bias=mask)[0], streams)


def _packed(streams: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Rows ``[sum of all, 3, H, D]``, and how many belong to each example of each stream."""
    sizes = [stream.shape[1] for stream in streams for _ in range(stream.shape[0])]
    return torch.cat([stream.flatten(0, 1) for stream in streams]), sizes


def _unpacked(rows: Tensor, streams: Sequence[Tensor]) -> list[Tensor]:
    parts = rows.split([stream.shape[:2].numel() for stream in streams])
    return [part.unflatten(0, s.shape[:2]) for part, s in zip(parts, streams, strict=True)]


BASELINES_ON_CPU: dict[str, Attend] = {"padded batch": padded_batch, "flex_attention": flex}
BASELINES_ON_GPU: dict[str, Attend] = {
    "sdpa, cudnn": sdpa_by(SDPBackend.CUDNN_ATTENTION),
    "sdpa, flash": sdpa_by(SDPBackend.FLASH_ATTENTION),
    "varlen_attn": varlen,
    "xformers": xformers,
    **BASELINES_ON_CPU,
}


# Around attention


def share_slots(sums: Sequence[Tensor], n_slots: int) -> None:
    """Write the mean of the slots into each of some fresh sums (Eq. 9)."""
    if n_slots:
        mean = torch.stack([x[:, -n_slots:] for x in sums]).mean(dim=0)
        for x in sums:
            x[:, -n_slots:] = mean


# A layer


def bottleneck(layer: Any, streams: Streams, slots: Tensor | None = None) -> Fused:
    """Own tokens ``[B, N_m, C]`` and bottleneck tokens ``[B, P, C]`` through a layer (Eq. 7-9)."""
    if slots is None:
        raise ValueError("slots must be a tensor, got None")
    fused, updates = {}, []
    for modality, x in streams.items():
        z = block_forward(layer.block_of(modality), torch.cat([x, slots], dim=1))
        fused[modality] = z[:, : x.shape[1]]
        updates.append(z[:, x.shape[1] :])
    return fused, torch.stack(updates).mean(dim=0)


def vanilla_own(layer: Any, streams: Streams, slots: Tensor | None = None) -> Fused:
    """Own weights per modality, queries of its own rows, keys and values of all (Eq. 5-6)."""
    everything = torch.cat(list(streams.values()), dim=1)
    fused = {}
    for modality, x in streams.items():
        block, width = layer.block_of(modality), x.shape[-1]
        weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
        query = linear(block.norm1(x), weight[:width], bias[:width])
        both = linear(block.norm1(everything), weight[width:], bias[width:])
        fused[modality] = _finish(block, x, (query, *both.chunk(2, dim=-1)))
    return fused, None


def vanilla_official(layer: Any, streams: Streams, slots: Tensor | None = None) -> Fused:
    """As the official code computes it: each block over the tokens of all, foreign rows dropped."""
    everything = torch.cat(list(streams.values()), dim=1)
    fused, start = {}, 0
    for modality, x in streams.items():
        z = block_forward(layer.block_of(modality), everything)
        fused[modality] = z[:, start : start + x.shape[1]]
        start += x.shape[1]
    return fused, None


def unimodal(layer: Any, streams: Streams, slots: Tensor | None = None) -> Fused:
    """Each stream by itself: below the fusion layer; and, joined before, shared weights (Eq. 4)."""
    return {m: block_forward(layer.block_of(m), x) for m, x in streams.items()}, slots


def block_forward(block: Any, x: Tensor) -> Tensor:
    """One pre-LN block on ``[B, S, C]``."""
    return _finish(block, x, block.attn.qkv(block.norm1(x)).chunk(3, dim=-1))


def _finish(block: Any, x: Tensor, qkv: tuple[Tensor, ...]) -> Tensor:
    """Attention and all that follows it."""
    attn, mlp = block.attn, block.mlp
    heads = [y.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for y in qkv]
    attended = scaled_dot_product_attention(*heads)
    y = x + attn.proj(attended.transpose(1, 2).flatten(2))
    return y + mlp.fc2(gelu(mlp.fc1(block.norm2(y)), approximate="tanh"))


@cache
def compiled(fuse: Fuse) -> Fuse:
    """The layer under ``torch.compile``, anew for each shape; never half compiled."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 128)  # beyond it an error, as a full graph
    return torch.compile(fuse, dynamic=False, fullgraph=True)


# The model


def forward(
    model: MBT, inputs: Mapping[str, Tensor], fuse: Fuse = bottleneck, below: Fuse = unimodal
) -> Tensor:
    """``model(inputs)`` of all modalities, without dropout.

    Args:
        model: Gives configuration and weights; must fuse as ``fuse`` does.
        inputs: As the model takes them.
        fuse: A fused layer; ``unimodal`` with a model that shares its weights.
        below: A layer below; ``compiled(unimodal)`` beside a compiled ``fuse``.
    """
    config = model.config
    streams = {m: model.embedding(m)(inputs[m]) for m in config.modalities}
    for layer in model.layers[: config.fusion_layer]:
        streams, _ = below(layer, streams, None)
    tokens = model.bottleneck_tokens
    batch = next(iter(streams.values())).shape[0]
    slots = None if tokens is None else tokens.expand(batch, -1, -1)
    if config.share_encoder:
        streams = joined(streams)
    for layer in model.layers[config.fusion_layer :]:
        streams, slots = fuse(layer, streams, slots)
    if config.share_encoder:
        counts = [config.n_tokens(m) for m in config.modalities]
        streams = dict(zip(config.modalities, streams[SHARED].split(counts, dim=1), strict=True))
    logits = [model.head(model.norm(x[:, 0])) for x in streams.values()]
    return torch.stack(logits).mean(dim=0)


def joined(streams: Streams) -> Streams:
    """All streams as one."""
    return {SHARED: torch.cat(list(streams.values()), dim=1)}
