"""Towers with the attributes of timm's ``VisionTransformer``, before and since version 0.6."""

import torch
from torch import Tensor, nn

from mbt_fast.models.encoders.family import NO_DROPOUT, Family, Layer, Need, Tower, apply_part


class TimmViT(Family):
    """With or without registers, layer scale, normed queries and keys, stochastic depth."""

    title = "a timm VisionTransformer"
    signs = ("patch_embed", "_pos_embed", "blocks", "norm")
    stack = "blocks"
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp")
    takes_heads = ("attn.norm", "attn.proj")
    cuts_patches = "patch_embed.proj"
    optional_parts = ("attn.q_norm", "attn.k_norm", "attn.norm", "ls1", "ls2")
    tower_needs = (Need("rope", None, "rotary positions are not supported"),)
    training_needs = (Need("attn.attn_drop.p", 0.0, NO_DROPOUT),)

    def embed(self, tower: Tower, x: Tensor) -> Tensor:
        """As in ``forward_features``."""
        tokens = apply_part(tower, "patch_drop", tower._pos_embed(tower.patch_embed(x)))
        return apply_part(tower, "norm_pre", tokens)

    def packed(self, layer: Layer, x: Tensor) -> Tensor:
        """The output of ``attn.qkv`` is packed; only with a norm of query and key it is copied."""
        attn = layer.attn
        packed = attn.qkv(layer.norm1(x)).unflatten(-1, (3, attn.num_heads, -1))
        if isinstance(getattr(attn, "q_norm", nn.Identity()), nn.Identity):
            return packed
        query, key, value = packed.unbind(2)
        return torch.stack([attn.q_norm(query), attn.k_norm(key), value], dim=2)

    def finish(self, layer: Layer, x: Tensor, heads: Tensor) -> Tensor:
        """Layer scale and stochastic depth are the layer's own."""
        attn = layer.attn
        attended = attn.proj_drop(attn.proj(apply_part(attn, "norm", heads.flatten(2))))
        y = x + self._branch(layer, "1", attended)
        return y + self._branch(layer, "2", layer.mlp(layer.norm2(y)))

    def _branch(self, layer: Layer, number: str, x: Tensor) -> Tensor:
        """Early versions have one ``drop_path`` for both branches, and no layer scale."""
        scaled = apply_part(layer, f"ls{number}", x)
        name = f"drop_path{number}"
        return apply_part(layer, name if hasattr(layer, name) else "drop_path", scaled)

    def norm(self, tower: Tower, x: Tensor) -> Tensor:
        """Identity where the tower norms after pooling; that ``fc_norm`` belongs to its head."""
        return tower.norm(x)


class TimmViT05(TimmViT):
    """Up to version 0.5, without a method that embeds positions; the first DINO too."""

    title = "a VisionTransformer of timm 0.5"
    signs = ("patch_embed", "pos_drop", "blocks", "norm")

    def embed(self, tower: Tower, x: Tensor) -> Tensor:
        """CLS and, in DeiT, a distillation token before the patches; then the positions of all."""
        patches = tower.patch_embed(x)
        extra = [tower.cls_token, getattr(tower, "dist_token", None)]
        first = [t.expand(patches.shape[0], -1, -1) for t in extra if t is not None]
        return tower.pos_drop(torch.cat([*first, patches], dim=1) + tower.pos_embed)
