"""One modality's pre-LN transformer block: its weights, and the two halves around attention."""

from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from mbt_fast.layers.plain import is_plain
from mbt_fast.layers.rows import Rows, take_rows
from mbt_fast.layers.savings import Savings
from mbt_fast.layers.stochastic_depth import Survivors, draw_survivors

LAYER_NORM_EPS = 1e-6  # flax's default, not PyTorch's 1e-5


class Attention(nn.Module):
    """Projections of multi-head attention. Attention itself runs over all streams at once.

    Args:
        dim: Channels ``C``.
        num_heads: Heads ``H``; must divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        """Build the two Linears."""
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def packed(self, x: Tensor) -> Tensor:
        """Project tokens ``[B, S, C]`` to packed query, key and value ``[B, S, 3, H, D]``."""
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1))

    def query_key_value(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens ``[B, S, C]``: queries of some rows, keys and values of all.

        Only these are computed, unless ``qkv`` has been replaced or has hooks: then it is called
        as a module, and the queries are picked from its output.

        Returns:
            ``[B, H, Q, D]`` for the ``Q`` rows, and twice ``[B, H, S, D]``.
        """
        if rows is None or not is_plain(self.qkv):
            packed = self.packed(x)
            query, (key, value) = take_rows(packed[:, :, 0], rows), packed[:, :, 1:].unbind(2)
        else:
            dim = self.qkv.in_features
            weight, bias = self.qkv.weight, self.qkv.bias
            query = linear(take_rows(x, rows), weight[:dim], bias[:dim])
            query = query.unflatten(-1, (self.num_heads, -1))
            packed = linear(x, weight[dim:], bias[dim:])
            key, value = packed.unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def output(self, heads: Tensor) -> Tensor:
        """Project the heads' output ``[B, S, H, D]`` back to ``[B, S, C]``."""
        return self.proj(heads.flatten(2))


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

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, S, C]`` to ``[B, S, C]``."""
        hidden = nn.functional.gelu(self.fc1(x), approximate="tanh")
        hidden = dropout(hidden, self.dropout, self.training)
        return dropout(self.fc2(hidden), self.dropout, self.training)


class Block(nn.Module):
    """The weights of one pre-LN block, ``y = x + Attn(LN1 x)``, ``z = y + MLP(LN2 y)`` (Eq. 2-3).

    Args:
        dim: Channels ``C``.
        num_heads: Heads ``H``.
        mlp_dim: Hidden channels of the MLP.
        drop_rate: Stochastic depth: probability, per example and branch, that a residual branch is
            left out in training. Survivors are not rescaled, as in the official code.
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
        self.savings = Savings()

    def packed(self, x: Tensor) -> Tensor:
        """First half: what attention reads of tokens ``[B, S, C]``, as ``[B, S, 3, H, D]``."""
        return self.attn.packed(self.norm1(x))

    def query_key_value(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """First half, where only some rows ask: see ``Attention.query_key_value``."""
        return self.attn.query_key_value(self.norm1(x), rows)

    def draw_survivors(self, x: Tensor) -> tuple[Survivors, Survivors]:
        """Which examples of ``[B, S, C]`` keep the attention branch, and which the MLP branch.

        Under dropout nothing is skipped: its masks are drawn for every element.
        """
        rate = self.drop_rate if self.training else 0.0
        skip = self.savings.skip_dropped and self.dropout == 0.0
        return draw_survivors(x, rate, skip=skip), draw_survivors(x, rate, skip=skip)

    def finish(self, x: Tensor, heads: Tensor, survivors: tuple[Survivors, Survivors]) -> Tensor:
        """Second half: both residual branches.

        Args:
            x: Tokens ``[B, S, C]``.
            heads: Attention's output ``[K, S, H, D]`` for the survivors of the first branch.
            survivors: From ``draw_survivors``.
        """
        attention, mlp = survivors
        y = attention.add(x, dropout(self.attn.output(heads), self.dropout, self.training))
        return mlp.add(y, self.mlp(self.norm2(mlp.take(y))))

    def extra_repr(self) -> str:
        """Show the rates that no submodule shows."""
        return f"drop_rate={self.drop_rate}, dropout={self.dropout}"
