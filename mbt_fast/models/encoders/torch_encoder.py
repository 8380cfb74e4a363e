"""Towers that are a ``torch.nn.TransformerEncoder``, or have its attributes."""

from torch import Tensor
from torch.nn.functional import linear

from mbt_fast.models.encoders.family import NO_DROPOUT, Family, Layer, Need, Tower, apply_part


class TorchEncoder(Family):
    """``layers`` around a ``MultiheadAttention``. The input is the tokens ``[B, N, C]``."""

    title = "a torch.nn.TransformerEncoder"
    signs = ("layers.0.self_attn",)
    stack = "layers"
    tower_parts = ("layers", "norm")
    parts = (
        "norm1",
        "self_attn.in_proj_weight",
        "self_attn.out_proj",
        "norm2",
        "linear1",
        "linear2",
    )
    takes_heads = ("self_attn.out_proj",)
    optional_parts = ("self_attn.in_proj_bias", "activation")
    layer_needs = (
        Need("norm_first", True, "post-norm is not supported"),
        Need("self_attn.batch_first", True, "streams are [B, S, C]"),
        Need("self_attn.add_zero_attn", False, "extra keys are not supported"),
    )
    training_needs = (Need("self_attn.dropout", 0.0, NO_DROPOUT),)

    def embed(self, tower: Tower, x: Tensor) -> Tensor:
        """Tokens come embedded."""
        return x

    def packed(self, layer: Layer, x: Tensor) -> Tensor:
        """The output of the joint projection is packed."""
        attn = layer.self_attn
        packed = linear(layer.norm1(x), attn.in_proj_weight, attn.in_proj_bias)
        return packed.unflatten(-1, (3, attn.num_heads, -1))

    def finish(self, layer: Layer, x: Tensor, heads: Tensor) -> Tensor:
        """The activation, ReLU unless another was chosen, is the layer's own."""
        y = x + layer.dropout1(layer.self_attn.out_proj(heads.flatten(2)))
        hidden = layer.dropout(layer.activation(layer.linear1(layer.norm2(y))))
        return y + layer.dropout2(layer.linear2(hidden))

    def norm(self, tower: Tower, x: Tensor) -> Tensor:
        """None unless it was given."""
        return apply_part(tower, "norm", x)
