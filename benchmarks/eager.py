"""MBT as a user would write it on stock PyTorch: what ours is measured against.

Attention is torch's, once per modality; bottleneck tokens are joined to each stream, cut off behind
the block, and averaged. Every layer is computed in full. Weights are those of an ``MBT``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import gelu, scaled_dot_product_attention

from mbt_fast import MBT
from mbt_fast.layers import Block, FusionLayer

Streams = dict[str, Tensor]


def forward(model: MBT, inputs: Mapping[str, Tensor]) -> Tensor:
    """``model(inputs)`` for bottleneck fusion of all modalities, without dropout."""
    config = model.config
    streams = {m: model.embedding(m)(inputs[m]) for m in config.modalities}
    bottlenecks = None
    for index, layer in enumerate(model.layers):
        if index == config.fusion_layer and model.bottleneck_tokens is not None:
            batch = next(iter(inputs.values())).shape[0]
            bottlenecks = model.bottleneck_tokens.expand(batch, -1, -1)
        if bottlenecks is None:
            streams = {m: block_forward(layer.block_of(m), x) for m, x in streams.items()}
        else:
            streams, bottlenecks = fusion_layer_forward(layer, streams, bottlenecks)
    logits = [model.head(model.norm(x[:, 0])) for x in streams.values()]
    return torch.stack(logits).mean(dim=0)


def fusion_layer_forward(
    layer: FusionLayer, streams: Streams, bottlenecks: Tensor
) -> tuple[Streams, Tensor]:
    """Own tokens ``[B, N_m, C]`` and bottleneck tokens ``[B, P, C]`` through a layer (Eq. 7-9)."""
    fused, updates = {}, []
    for modality, x in streams.items():
        z = block_forward(layer.block_of(modality), torch.cat([x, bottlenecks], dim=1))
        fused[modality] = z[:, : x.shape[1]]
        updates.append(z[:, x.shape[1] :])
    return fused, torch.stack(updates).mean(dim=0)


def block_forward(block: Block, x: Tensor) -> Tensor:
    """One pre-LN block on ``[B, S, C]``."""
    attn, mlp = block.attn, block.mlp
    packed = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, -1))
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    heads = scaled_dot_product_attention(query, key, value)
    y = x + attn.proj(heads.transpose(1, 2).flatten(2))
    return y + mlp.fc2(gelu(mlp.fc1(block.norm2(y)), approximate="tanh"))
