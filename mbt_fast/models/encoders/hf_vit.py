"""Towers with the attributes of Hugging Face's ViT, DeiT, AST (before and since 5) and VideoMAE."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear

from mbt_fast.layers.hooks import are_unmodified, is_everything_watched
from mbt_fast.models.encoders.family import NO_DROPOUT, Family, Layer, Need, Tower, apply_part


class _HuggingFace(Family):
    """What both layouts share: ``embeddings``, ``layernorm``, and a head around the encoder."""

    cuts_patches = "embeddings.patch_embeddings.projection"
    interpolates = True

    def body(self, tower: Tower) -> Tower:
        """The encoder inside ``ViTForImageClassification`` and its like."""
        return getattr(tower, getattr(tower, "base_model_prefix", ""), tower)

    def embed(self, tower: Tower, x: Tensor) -> Tensor:
        """Patches, CLS and, in DeiT and AST, a distillation token, and positions."""
        return self.body(tower).embeddings(x)

    def swaps_axes(self, x: Tensor) -> bool:
        """AST takes ``[B, time, mel]``, and convolves ``[B, 1, mel, time]``."""
        return x.ndim == 3

    def embed_resized(self, tower: Tower, x: Tensor) -> Tensor:
        """ViT and DeiT interpolate by themselves; AST's positions are interpolated here."""
        embeddings = self.body(tower).embeddings
        if hasattr(embeddings, "interpolate_pos_encoding"):
            return embeddings(x, interpolate_pos_encoding=True)
        return _embed_spectrogram(embeddings, x)

    def norm(self, tower: Tower, x: Tensor) -> Tensor:
        """The result is the ``last_hidden_state``."""
        return self.body(tower).layernorm(x)


class HuggingFaceViT4(_HuggingFace):
    """Transformers up to version 4."""

    title = "a Hugging Face ViT or AST"
    signs: ClassVar[tuple[str, ...]] = ("embeddings", "encoder.layer", "layernorm")
    stack = "encoder.layer"
    parts = (
        "layernorm_before",
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output",
        "layernorm_after",
        "intermediate",
        "output",
    )
    takes_heads = ("attention.output",)
    tower_needs = (
        Need("encoder.relative_position_bias", None, "relative positions are not supported"),
    )
    training_needs = (
        Need("attention.attention.dropout.p", 0.0, NO_DROPOUT),
        Need("attention.attention.dropout_prob", 0.0, NO_DROPOUT),
    )

    def packed(self, layer: Layer, x: Tensor) -> Tensor:
        """Of three Linears."""
        attention = layer.attention.attention
        linears = (attention.query, attention.key, attention.value)
        return _packed(linears, layer.layernorm_before(x), attention.num_attention_heads)

    def finish(self, layer: Layer, x: Tensor, heads: Tensor) -> Tensor:
        """The layer's ``output`` adds its residual, that of its attention does not."""
        y = layer.attention.output(heads.flatten(2), x) + x
        return layer.output(layer.intermediate(layer.layernorm_after(y)), y)


class HuggingFaceVideoMAE(HuggingFaceViT4):
    """VideoMAE: patches of video, no CLS token, and no last norm where the head pools and norms."""

    title = "a Hugging Face VideoMAE"
    signs = ("embeddings.patch_embeddings.tubelet_size", "encoder.layer")
    interpolates = False

    def embed(self, tower: Tower, x: Tensor) -> Tensor:
        """Patches of video ``[B, T, 3, H, W]``, none of them masked, and positions."""
        return self.body(tower).embeddings(x, None)

    def embed_resized(self, tower: Tower, x: Tensor) -> Tensor:
        """Its positions are computed for one size."""
        return self.embed(tower, x)

    def norm(self, tower: Tower, x: Tensor) -> Tensor:
        """The result is the ``last_hidden_state``."""
        return apply_part(self.body(tower), "layernorm", x)


class HuggingFaceViT5(_HuggingFace):
    """Transformers from version 5 on."""

    title = "a ViT or AST of transformers 5"
    signs = ("embeddings", "layers", "layernorm")
    stack = "layers"
    parts = (
        "layernorm_before",
        "attention.q_proj",
        "attention.k_proj",
        "attention.v_proj",
        "attention.o_proj",
        "layernorm_after",
        "mlp",
        "dropout",
    )
    takes_heads = ("attention.o_proj",)
    training_needs = (Need("attention.attention_dropout", 0.0, NO_DROPOUT),)

    def packed(self, layer: Layer, x: Tensor) -> Tensor:
        """Of three Linears."""
        attention = layer.attention
        linears = (attention.q_proj, attention.k_proj, attention.v_proj)
        return _packed(linears, layer.layernorm_before(x), attention.num_attention_heads)

    def finish(self, layer: Layer, x: Tensor, heads: Tensor) -> Tensor:
        """One ``dropout`` for both branches."""
        y = layer.dropout(layer.attention.o_proj(heads.flatten(2))) + x
        return layer.dropout(layer.mlp(layer.layernorm_after(y))) + y


def _embed_spectrogram(embeddings: Any, x: Tensor) -> Tensor:
    """AST's embedding of ``[B, time, mel]``, its grid of positions resized as AST's authors do."""
    first = [embeddings.cls_token, embeddings.distillation_token]
    patches = embeddings.patch_embeddings(x)
    tokens = torch.cat([*(t.expand(x.shape[0], -1, -1) for t in first), patches], dim=1)
    projection, positions = embeddings.patch_embeddings.projection, embeddings.position_embeddings
    grid = positions[:, len(first) :].mT.unflatten(2, embeddings.get_shape(embeddings.config))
    sizes = zip((x.shape[2], x.shape[1]), projection.kernel_size, projection.stride, strict=True)
    size = [(rows - kernel) // stride + 1 for rows, kernel, stride in sizes]
    resized = interpolate(grid, size=size, mode="bilinear").flatten(2).mT
    return embeddings.dropout(tokens + torch.cat([positions[:, : len(first)], resized], dim=1))


def _packed(linears: Sequence[nn.Linear], x: Tensor, num_heads: int) -> Tensor:
    """Pack query, key and value of three Linears.

    One product with their joined weights is faster than three and a copy of the results. Where one
    of them is more than a Linear, by an adapter or a hook, each is called.
    """
    if not _are_plain(linears):
        packed = torch.stack([module(x) for module in linears], dim=2)
        return packed.unflatten(-1, (num_heads, -1))
    weight = torch.cat([module.weight for module in linears])
    biases: list[Tensor] = [module.bias for module in linears if module.bias is not None]
    packed = linear(x, weight, torch.cat(biases) if biases else None)
    return packed.unflatten(-1, (3, num_heads, -1))


def _are_plain(linears: Sequence[nn.Linear]) -> bool:
    """Linears of torch's own, all with a bias or none, and nothing that would go unnoticed."""
    if is_everything_watched() or not are_unmodified((nn.Linear, linears)):
        return False
    return len({module.bias is None for module in linears}) == 1
