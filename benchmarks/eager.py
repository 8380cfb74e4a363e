"""MBT as a user would write it on stock PyTorch: what ours is measured against.

Attention is torch's, once per modality. Every layer is computed in full. Weights are those of an
``MBT``. Besides bottleneck fusion there are the ways to fuse that it replaces, each computed as its
equations ask, and the official code's way, which computes rows that it throws away.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from mbt_fast import MBT
from mbt_fast.layers import Block, FusionLayer
from mbt_fast.layers.fusion import SHARED

Streams = dict[str, Tensor]
Kernel = SDPBackend | None
Fuse = Callable[[FusionLayer, Streams, Tensor | None, Kernel], tuple[Streams, Tensor | None]]


def bottleneck(
    layer: FusionLayer, streams: Streams, slots: Tensor | None, kernel: Kernel = None
) -> tuple[Streams, Tensor | None]:
    """Own tokens ``[B, N_m, C]`` and bottleneck tokens ``[B, P, C]`` through a layer (Eq. 7-9)."""
    fused, updates = {}, []
    for modality, x in streams.items():
        joined = torch.cat([x, cast(Tensor, slots)], dim=1)
        z = block_forward(layer.block_of(modality), joined, kernel)
        fused[modality] = z[:, : x.shape[1]]
        updates.append(z[:, x.shape[1] :])
    return fused, torch.stack(updates).mean(dim=0)


def vanilla_own(
    layer: FusionLayer, streams: Streams, slots: Tensor | None = None, kernel: Kernel = None
) -> tuple[Streams, Tensor | None]:
    """Own weights per modality, queries of its own rows, keys and values of all (Eq. 5-6)."""
    everything = torch.cat(list(streams.values()), dim=1)
    fused = {}
    for modality, x in streams.items():
        block, width = layer.block_of(modality), x.shape[-1]
        weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
        query = linear(block.norm1(x), weight[:width], bias[:width])
        both = linear(block.norm1(everything), weight[width:], bias[width:])
        fused[modality] = _finish(block, x, (query, *both.chunk(2, dim=-1)), kernel)
    return fused, None


def vanilla_official(
    layer: FusionLayer, streams: Streams, slots: Tensor | None = None, kernel: Kernel = None
) -> tuple[Streams, Tensor | None]:
    """As the official code computes it: each block over the tokens of all, foreign rows dropped."""
    everything = torch.cat(list(streams.values()), dim=1)
    fused, start = {}, 0
    for modality, x in streams.items():
        z = block_forward(layer.block_of(modality), everything, kernel)
        fused[modality] = z[:, start : start + x.shape[1]]
        start += x.shape[1]
    return fused, None


def apart(
    layer: FusionLayer, streams: Streams, slots: Tensor | None = None, kernel: Kernel = None
) -> tuple[Streams, Tensor | None]:
    """Each stream by itself: below the fusion layer; and, joined before, shared weights (Eq. 4)."""
    return {m: block_forward(layer.block_of(m), x, kernel) for m, x in streams.items()}, slots


def block_forward(block: Block, x: Tensor, kernel: Kernel = None) -> Tensor:
    """One pre-LN block on ``[B, S, C]``."""
    return _finish(block, x, block.attn.qkv(block.norm1(x)).chunk(3, dim=-1), kernel)


def _finish(block: Block, x: Tensor, qkv: tuple[Tensor, ...], kernel: Kernel) -> Tensor:
    """Attention and all that follows it."""
    attn, mlp = block.attn, block.mlp
    heads = [y.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for y in qkv]
    if kernel is None:
        attended = scaled_dot_product_attention(*heads)
    else:
        with sdpa_kernel(kernel):
            attended = scaled_dot_product_attention(*heads)
    y = x + attn.proj(attended.transpose(1, 2).flatten(2))
    return y + mlp.fc2(gelu(mlp.fc1(block.norm2(y)), approximate="tanh"))


def forward(
    model: MBT,
    inputs: Mapping[str, Tensor],
    fuse: Fuse = bottleneck,
    *,
    kernel: Kernel = None,
    compiled: bool = False,
) -> Tensor:
    """``model(inputs)`` of all modalities, without dropout.

    Args:
        model: Gives configuration and weights; must fuse as ``fuse`` does.
        inputs: As the model takes them.
        fuse: A fused layer; ``apart`` with a model that shares its weights.
        kernel: torch's attention kernel; ``None`` leaves the choice to torch.
        compiled: Layers under ``torch.compile``, once for all layers of a kind.
    """
    config = model.config
    below, fused = (compiled_once(f) if compiled else f for f in (apart, fuse))
    streams = {m: model.embedding(m)(inputs[m]) for m in config.modalities}
    for layer in model.layers[: config.fusion_layer]:
        streams, _ = below(layer, streams, None, kernel)
    tokens = model.bottleneck_tokens
    batch = next(iter(streams.values())).shape[0]
    slots = None if tokens is None else tokens.expand(batch, -1, -1)
    if config.share_encoder:
        streams = joined(streams)
    for layer in model.layers[config.fusion_layer :]:
        streams, slots = fused(layer, streams, slots, kernel)
    if config.share_encoder:
        counts = [config.n_tokens(m) for m in config.modalities]
        streams = dict(zip(config.modalities, streams[SHARED].split(counts, dim=1), strict=True))
    logits = [model.head(model.norm(x[:, 0])) for x in streams.values()]
    return torch.stack(logits).mean(dim=0)


def joined(streams: Streams) -> Streams:
    """All streams as one."""
    return {SHARED: torch.cat(list(streams.values()), dim=1)}


@cache
def compiled_once(fuse: Fuse) -> Fuse:
    """The layer under ``torch.compile``, anew for each shape and kernel; never half compiled."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 128)  # beyond it an error, as a full graph
    return torch.compile(fuse, dynamic=False, fullgraph=True)
