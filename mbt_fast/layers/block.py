"""One modality's pre-LN transformer block: its weights; ``FusionLayer`` runs it."""

from torch import Tensor, nn
from torch.nn.functional import dropout

from mbt_fast.functional import bias_gelu
from mbt_fast.layers.drop_path import ALL, Keep, sample_keep
from mbt_fast.layers.execution import Execution
from mbt_fast.layers.recompute import Affine, are_unmodified

LAYER_NORM_EPS = 1e-6  # flax's default, not PyTorch's 1e-5
GELU = "tanh"  # flax's default, not PyTorch's exact one


class Attention(nn.Module):
    """Projections of multi-head attention. Attention itself runs over all streams at once.

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

    def split(self, product: Tensor) -> Tensor:
        """View products of ``n`` of query, key and value ``[B, S, n * C]``: ``[B, S, n, H, D]``."""
        return product.unflatten(-1, (-1, self.num_heads, self.head_dim))

    def query_and_key_value(self) -> tuple[Affine, Affine]:
        """Views of the parameters of ``qkv``: those of the query, those of key and value."""
        dim, weight, bias = self.qkv.in_features, self.qkv.weight, self.qkv.bias
        query, rest = (None, None) if bias is None else (bias[:dim], bias[dim:])
        return Affine(weight[:dim], query), Affine(weight[dim:], rest)


class Mlp(nn.Module):
    """Linear, tanh-GELU, Linear.

    Args:
        dim: Channels ``C``.
        hidden_dim: Channels in between.
        dropout: Dropout rate after either Linear, as in the official code.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        """Build the two Linears."""
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = dropout
        self.backend = "auto"  # of GELU, where the module itself is called

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, S, C]`` to ``[B, S, C]``."""
        hidden = bias_gelu(self.fc1(x), approximate=GELU, backend=self.backend)
        hidden = dropout(hidden, self.dropout, self.training)
        return dropout(self.fc2(hidden), self.dropout, self.training)


class Block(nn.Module):
    """The weights of one pre-LN block, ``y = x + Attn(LN1 x)``, ``z = y + MLP(LN2 y)`` (Eq. 2-3).

    Args:
        dim: Channels ``C``.
        num_heads: Heads ``H``.
        mlp_dim: Hidden channels of the MLP.
        drop_rate: Stochastic depth: probability, per example and branch, that a residual branch is
            left out in training. Kept branches are not rescaled, as in the official code.
        dropout: Dropout rate after attention and in the MLP.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, drop_rate: float = 0.0, dropout: float = 0.0
    ) -> None:
        """Build norms, attention and MLP."""
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, mlp_dim, dropout)
        self.drop_rate = drop_rate
        self.dropout = dropout

    def sample_keep(self, x: Tensor, execution: Execution) -> tuple[Keep, Keep]:
        """Which examples of ``[B, S, C]`` keep the attention branch, and which the MLP branch.

        Under dropout nothing is skipped: its masks are drawn for every element.
        """
        if not self.training or self.drop_rate == 0.0:
            return ALL, ALL
        skip = execution.skip_dropped and self.dropout == 0.0
        first = sample_keep(x, self.drop_rate, skip=skip)
        return first, sample_keep(x, self.drop_rate, skip=skip)

    def attention_branch(self, heads: Tensor) -> Tensor:
        """What attention adds: its heads ``[B, S, H, D]``, projected back to ``[B, S, C]``."""
        branch = self.attn.proj(heads.flatten(2))
        return dropout(branch, self.dropout, True) if self.training and self.dropout else branch

    def is_mlp_unmodified(self) -> bool:
        """Whether the MLP's Linears and GELU may be run in its place."""
        mlp = self.mlp
        return (
            are_unmodified((mlp,), Mlp)
            and are_unmodified((mlp.fc1, mlp.fc2), nn.Linear)
            and not (mlp.training and mlp.dropout > 0.0)
        )

    def extra_repr(self) -> str:
        """Show the rates that no submodule shows."""
        return f"drop_rate={self.drop_rate}, dropout={self.dropout}"
