"""Encoders that do not fit: the message names the first thing."""

import pytest
import torch
from encoder_cases import (
    DIM,
    HIDDEN,
    TimmBlock,
    TimmPostNormBlock,
    TimmViT,
    torch_encoder,
)
from torch import nn

from mbt_fast import fuse


class Rotary(TimmViT):
    """Like timm's Eva, whose attention turns queries and keys."""

    def __init__(self):
        super().__init__()
        self.rope = nn.Identity()


class Scaled(TimmBlock):
    """Layer scale of Hugging Face's BEiT: parameters of no known part."""

    def __init__(self):
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.zeros(DIM))


class Parallel(nn.Module):
    """Like timm's ``ParallelScalingBlock``."""

    def __init__(self):
        super().__init__()
        self.in_norm, self.in_proj = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)


class Sharper(TimmBlock):
    """Another scale of the scores than the root of the head dimension."""

    def forward(self, x):
        x = x + self.attn(1.5 * self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Turning(TimmBlock):
    """Rotary positions that the layer is given, as in Hugging Face's DINOv3."""

    def forward(self, x, position_embeddings):
        return super().forward(x * position_embeddings)


def with_patches():
    """A network around torch's layers, whose input is not the tokens."""
    encoder = torch_encoder()
    encoder.patches = nn.Linear(8, DIM)
    return encoder


def wide():
    encoder = TimmViT()
    for block in encoder.blocks:
        block.attn.num_heads = 2
    return encoder


def many_heads():
    encoder = TimmViT()
    encoder.blocks[1].attn.num_heads = 6
    return encoder


def encoder_decoder():
    return nn.Transformer(DIM, 2, 1, 1, HIDDEN, batch_first=True)


MISFITS = {
    "another kind of network": (
        lambda: nn.Linear(2, 2),
        r"must have the attributes of .*; got Linear",
    ),
    "encoder and decoder": (encoder_decoder, r"must have the attributes of .*; got Transformer$"),
    "timm, post-norm": (
        lambda: TimmViT(block=TimmPostNormBlock),
        r"blocks\[0\] must compute y = x \+ Attention\(norm\(x\)\).*got TimmPostNormBlock",
    ),
    "timm, another attention": (
        lambda: TimmViT(block=Sharper),
        r"blocks\[0\] must compute .* Sharper",
    ),
    "timm, rotary": (Rotary, r"\.rope must be None \(rotary positions .*got Identity$"),
    "timm, rotary in the layer": (
        lambda: TimmViT(block=Turning),
        r"blocks\[0\] must run on tokens .*missing .* 'position_embeddings'$",
    ),
    "timm, unknown parameter": (
        lambda: TimmViT(block=Scaled),
        r"blocks\[0\] must have no parameters but those of norm1, .*, got gamma_1$",
    ),
    "timm, parallel": (
        lambda: TimmViT(block=Parallel),
        r"blocks\[0\] must have norm1, got Parallel without it$",
    ),
    "timm, small heads": (
        many_heads,
        r"blocks\[1\] must have heads of 16 to 128 channels, got 48 channels and 6 heads of 8$",
    ),
    "torch, post-norm": (
        lambda: torch_encoder(norm_first=False),
        r"layers\[0\]\.norm_first must be True \(post-norm is not supported\), got False$",
    ),
    "torch, sequence first": (
        lambda: torch_encoder(batch_first=False),
        r"layers\[0\]\.self_attn\.batch_first must be True",
    ),
    "torch, an embedding of its own": (
        with_patches,
        r" must have no parameters but those of layers, norm, got patches\.weight$",
    ),
    "another depth": (
        lambda: TimmViT(layers=2),
        r"must have 3 layers like towers\['rgb'\], got 2$",
    ),
    "another width": (
        lambda: torch_encoder(dim=64, heads=4),
        r"layers\[0\] must have 48 channels and 3 heads of 16 like .*, got 64 .* 4 heads of 16$",
    ),
    "other heads": (wide, r"blocks\[0\] must have .* 3 heads of 16 like .*2 heads of 24$"),
}


@pytest.mark.parametrize(("make", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_the_first_thing_that_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=rf"^towers\['sound'\].*{message}"):
        fuse({"rgb": TimmViT(), "sound": make()}, fusion_layer=1)
