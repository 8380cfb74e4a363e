"""Random weights as the official code draws them (scenic, ``projects/mbt``)."""

import torch
from torch import Tensor, nn

from mbt_fast.layers import Attention, Mlp, StreamEmbedding

TOKEN_STD = 0.02  # position embeddings and bottleneck tokens
MLP_BIAS_STD = 1e-6
# flax cuts its truncated normal at two standard deviations, and scales it to the right variance.
TRUNCATED_STD = 0.87962566103423978


@torch.no_grad()
def initialise(model: nn.Module, bottleneck_tokens: Tensor | None, head: nn.Linear) -> None:
    """Fill the parameters of an ``MBT`` in place.

    CLS tokens and the classifier are zero; query, key and value are Xavier-uniform each on its own.
    """
    for module in model.modules():
        if isinstance(module, StreamEmbedding):
            _init_embedding(module)
        elif isinstance(module, Attention):
            for kernel in (*module.qkv.weight.chunk(3), module.proj.weight):
                nn.init.xavier_uniform_(kernel)
            nn.init.zeros_(module.qkv.bias)
            nn.init.zeros_(module.proj.bias)
        elif isinstance(module, Mlp):
            for linear in (module.fc1, module.fc2):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.normal_(linear.bias, std=MLP_BIAS_STD)
    if bottleneck_tokens is not None:
        nn.init.normal_(bottleneck_tokens, std=TOKEN_STD)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)


def _init_embedding(embedding: StreamEmbedding) -> None:
    """LeCun-normal patches, flax's default for convolutions; N(0, 0.02^2) positions; CLS zero."""
    kernel = embedding.proj.weight
    std = (kernel[0].numel() ** -0.5) / TRUNCATED_STD
    nn.init.trunc_normal_(kernel, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(embedding.proj.bias)
    if embedding.cls_token is not None:
        nn.init.zeros_(embedding.cls_token)
    nn.init.normal_(embedding.pos_embed, std=TOKEN_STD)
