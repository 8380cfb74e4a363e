"""One modality's pre-LN transformer block: its weights, and the two halves around attention."""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from mbt_fast.layers.plain import is_plain
from mbt_fast.layers.rows import Rows, take_rows

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

    def packed(self, x: Tensor) -> Tensor:
        """First half: what attention reads of tokens ``[B, S, C]``, as ``[B, S, 3, H, D]``."""
        return self.attn.packed(self.norm1(x))

    def query_key_value(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """First half, where only some rows ask: see ``Attention.query_key_value``."""
        return self.attn.query_key_value(self.norm1(x), rows)

    def finish(self, x: Tensor, heads: Tensor) -> Tensor:
        """Second half: both residual branches, given attention's output ``[B, S, H, D]``."""
        attended = dropout(self.attn.output(heads), self.dropout, self.training)
        y = x + self._drop_branch(attended)
        return y + self._drop_branch(self.mlp(self.norm2(y)))

    def _drop_branch(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_rate == 0.0:
            return branch
        keep = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.drop_rate
        return branch * keep.to(branch.dtype)

    def extra_repr(self) -> str:
        """Show the rates that no submodule shows."""
        return f"drop_rate={self.drop_rate}, dropout={self.dropout}"
