"""One modality's pre-LN transformer block: its weights, and the two halves around attention."""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from mbt_fast.autograd.mlp import gelu_linear, norm_mlp
from mbt_fast.autograd.norm_linear import norm_linear
from mbt_fast.functional import bias_gelu
from mbt_fast.layers.plain import is_plain
from mbt_fast.layers.rows import Rows, take_rows
from mbt_fast.layers.savings import Savings
from mbt_fast.layers.stochastic_depth import Survivors, draw_survivors

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

    def packed(self, x: Tensor) -> Tensor:
        """Project tokens ``[B, S, C]`` to packed query, key and value ``[B, S, 3, H, D]``."""
        return self.split(self.qkv(x))

    def split(self, product: Tensor) -> Tensor:
        """View products of ``n`` of query, key and value ``[B, S, n * C]``: ``[B, S, n, H, D]``."""
        return product.unflatten(-1, (-1, self.num_heads, self.head_dim))

    def weights(self) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
        """Views of weight and bias of ``qkv``: those of the query, those of key and value."""
        dim, weight, bias = self.qkv.in_features, self.qkv.weight, self.qkv.bias
        if bias is None:
            return (weight[:dim], None), (weight[dim:], None)
        return (weight[:dim], bias[:dim]), (weight[dim:], bias[dim:])

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
        self.backend = "auto"

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

    def set_backend(self, backend: str) -> None:
        """Choose the backend of GELU; attention runs outside."""
        self.mlp.backend = backend

    def packed(self, x: Tensor) -> Tensor:
        """First half: what attention reads of tokens ``[B, S, C]``, as ``[B, S, 3, H, D]``."""
        qkv = self.attn.qkv
        if not self._recomputes(self.norm1, qkv):
            return self.attn.packed(self.norm1(x))
        return self.attn.split(self._norm1_linear(x, qkv.weight, qkv.bias))

    def query_key_value(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """First half where only some rows ask: their queries, keys and values of all rows.

        Nothing else is computed, unless ``qkv`` has been replaced or has hooks: then it is called
        as a module, and the queries are picked from its output.

        Args:
            x: Tokens ``[B, S, C]``.
            rows: The ``Q`` rows that ask.

        Returns:
            ``[B, H, Q, D]``, and twice ``[B, H, S, D]``.
        """
        qkv = self.attn.qkv
        if rows is None or not is_plain(qkv, nn.Linear):
            query, key, value = self.packed(x).unbind(2)
            query = take_rows(query, rows)
        else:
            recomputes = self._recomputes(self.norm1, qkv)
            project = self._norm1_linear if recomputes else linear
            tokens = x if recomputes else self.norm1(x)
            of_query, of_key_value = self.attn.weights()
            query = self.attn.split(project(take_rows(tokens, rows), *of_query)).squeeze(2)
            key, value = self.attn.split(project(tokens, *of_key_value)).unbind(2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def draw_survivors(self, x: Tensor) -> tuple[Survivors, Survivors]:
        """Which examples of ``[B, S, C]`` keep the attention branch, and which the MLP branch.

        Under dropout nothing is skipped: its masks are drawn for every element.
        """
        rate = self.drop_rate if self.training else 0.0
        skip = self.savings.skip_dropped and self.dropout == 0.0
        return draw_survivors(x, rate, skip=skip), draw_survivors(x, rate, skip=skip)

    def add_and_pass_mlp(
        self, x: Tensor, heads: Tensor, survivors: tuple[Survivors, Survivors]
    ) -> tuple[Tensor, Tensor]:
        """Second half: the residual sum with attention, and the branch that is still to be added.

        Args:
            x: Tokens ``[B, S, C]``.
            heads: Attention's output ``[K, S, H, D]`` for the survivors of the first branch.
            survivors: From ``draw_survivors``.

        Returns:
            ``y = x + Attn(LN1 x)``, and ``MLP(LN2 y)`` for the survivors of the second branch.
        """
        attention, mlp = survivors
        y = attention.add(x, dropout(self.attn.output(heads), self.dropout, self.training))
        return y, self._mlp(mlp.take(y))

    def _mlp(self, y: Tensor) -> Tensor:
        """The MLP branch."""
        mlp, norm = self.mlp, self.norm2
        plain = is_plain(mlp, Mlp) and self._recomputes(norm, mlp.fc1, mlp.fc2)
        if not plain or (self.training and mlp.dropout > 0.0):
            return mlp(norm(y))
        first, second = (mlp.fc1.weight, mlp.fc1.bias), (mlp.fc2.weight, mlp.fc2.bias)
        if self.savings.memory == "minimal":
            weights = (*first, *second)
            return norm_mlp(y, norm.weight, norm.bias, norm.eps, weights, GELU, mlp.backend)
        hidden = norm_linear(y, norm.weight, norm.bias, norm.eps, *first)
        return gelu_linear(hidden, *second, GELU, mlp.backend)

    def _norm1_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        norm = self.norm1
        return norm_linear(x, norm.weight, norm.bias, norm.eps, weight, bias)

    def _recomputes(self, norm: nn.Module, *linears: nn.Module) -> bool:
        """Whether norm and Linears save their inputs only, and are computed again.

        A compiler makes this choice by itself, for all that it sees.
        """
        return (
            self.savings.memory != "full"
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and is_plain(norm, nn.LayerNorm)
            and norm.weight is not None
            and all(is_plain(part, nn.Linear) for part in linears)
        )

    def extra_repr(self) -> str:
        """Show the rates that no submodule shows."""
        return f"drop_rate={self.drop_rate}, dropout={self.dropout}"
