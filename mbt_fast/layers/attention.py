"""One modality's attention: its projections, and how heads of any size reach the op."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import pad

from mbt_fast.layers.recompute import Affine
from mbt_fast.layers.rows import Rows, take_rows
from mbt_fast.ops.bottleneck_attention import attend
from mbt_fast.ops.checks import MIN_HEAD_DIM
from mbt_fast.ops.dense_attention import attend as attend_densely
from mbt_fast.ops.dispatch import implements
from mbt_fast.ops.streams import valid_rows


class Attention(nn.Module):
    """Multi-head attention: ``FusionLayer`` takes its weights, or calls it where it is watched.

    Args:
        dim: Channels ``C``.
        num_heads: Heads ``H``; must divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        """Build the two Linears."""
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.backend = "auto"  # where the module itself is called

    def forward(
        self,
        x: Tensor,
        length: Tensor | None = None,
        n_slots: int = 0,
        queries: Rows = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Attend within one stream.

        Args:
            x: Normed rows ``[B, S, C]``, own tokens then slots.
            length: int32 ``[B]``, valid own tokens, or ``None`` for no padding.
            n_slots: The last rows, which take part wherever the stream is present.
            queries: The rows that attend, ``None`` for all. The others are keys and values only.
            valid: bool ``[B, S]``, the rows that take part, instead of ``length``.

        Returns:
            ``[B, queries, C]``.
        """
        packed = self.split(self.qkv(x))
        if queries is None and valid is None:
            (heads,) = attend_within([packed], n_slots, [length], self.backend)
        else:
            mask = valid_rows(length, x.shape[1], n_slots) if valid is None else valid
            query, key, value = packed.unbind(2)
            heads = attend_densely(
                take_rows(query, queries).transpose(1, 2),
                key.transpose(1, 2),
                value.transpose(1, 2),
                mask,
                backend=dense_backend(self.backend, queries),
            ).transpose(1, 2)
        return self.proj(heads.flatten(2))

    def reset_parameters(self) -> None:
        """Draw weights as the official code does: query, key and value each Xavier-uniform."""
        dim = self.qkv.in_features
        bound = (6 / (dim + dim)) ** 0.5  # of a square matrix, of which qkv holds three
        nn.init.uniform_(self.qkv.weight, -bound, bound)
        nn.init.xavier_uniform_(self.proj.weight)
        for linear in (self.qkv, self.proj):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def split(self, product: Tensor) -> Tensor:
        """View products of ``n`` of query, key and value ``[B, S, n * C]``: ``[B, S, n, H, D]``."""
        return product.unflatten(-1, (-1, self.num_heads, self.head_dim))

    def query_and_key_value(self) -> tuple[Affine, Affine]:
        """Views of the parameters of ``qkv``: those of the query, those of key and value."""
        dim, weight, bias = self.qkv.in_features, self.qkv.weight, self.qkv.bias
        query, rest = (None, None) if bias is None else (bias[:dim], bias[dim:])
        return Affine(weight[:dim], query), Affine(weight[dim:], rest)


def attend_within(
    packed: Sequence[Tensor], n_slots: int, lengths: Sequence[Tensor | None], backend: str
) -> list[Tensor]:
    """Self-attention of each packed stream ``[B, S_m, 3, H, D]``: ``[B, S_m, H, D]``.

    Heads below the op's smallest size are padded with zeros, which changes nothing.
    """
    head_dim = packed[0].shape[-1]
    missing = max(MIN_HEAD_DIM - head_dim, 0)
    if missing:
        packed = [pad(stream, (0, missing)) for stream in packed]
    heads, _ = attend(packed, n_slots, lengths, scale=head_dim**-0.5, backend=backend)
    return [out[..., :head_dim] for out in heads] if missing else heads


def dense_backend(backend: str, queries: Rows) -> str:
    """Who runs ``dense_attention``; a backend without it leaves a few queries to ``"auto"``."""
    few = queries is not None and not isinstance(queries, slice)
    return "auto" if few and not implements(backend, "dense_attention") else backend
