"""One modality's pre-LN transformer block.

``FusionLayer`` takes its weights, to run the blocks of all modalities together. Where a block is
wrapped, watched or replaced, it is called, as any module is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from mbt_fast.functional import bias_gelu
from mbt_fast.layers.attention import Attention
from mbt_fast.layers.drop_path import ALL, Keep, sample_keep
from mbt_fast.layers.hooks import are_unmodified
from mbt_fast.layers.rows import take_rows

LAYER_NORM_EPS = 1e-6  # flax's default, not PyTorch's 1e-5
GELU = "tanh"  # flax's default, not PyTorch's exact one
MLP_BIAS_STD = 1e-6


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

    def reset_parameters(self) -> None:
        """Draw weights as the official code does: Xavier-uniform, biases close to zero."""
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=MLP_BIAS_STD)


class Block(nn.Module):
    """One pre-LN block, ``y = x + Attn(LN1 x)``, ``z = y + MLP(LN2 y)`` (Eq. 2-3).

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
        self.skip_dropped = True  # see Execution

    def forward(
        self,
        x: Tensor,
        length: Tensor | None = None,
        n_slots: int = 0,
        rows: Sequence[int] | None = None,
        valid: Tensor | None = None,
        context: Tensor | None = None,
        start: int = 0,
    ) -> Tensor:
        """Pass one stream through the block, every part of which is called as a module.

        Equal to what ``FusionLayer`` makes of the stream before slots are shared.

        Args:
            x: ``[B, S, C]``, own tokens then slots.
            length: int32 ``[B]``, valid own tokens, or ``None`` for no padding.
            n_slots: The last rows of ``x``, which take part wherever the stream is present.
            rows: Rows to compute, ``None`` for all. The others are keys and values only.
            valid: bool ``[B, K]``, the keys that take part, instead of ``length``.
            context: Joined streams ``[B, K, C]`` to attend to; ``x`` alone, if there are none.
            start: Where ``x`` begins in ``context``.

        Returns:
            ``[B, rows, C]``.
        """
        first, second = self.sample_keep(x)
        tokens = x if context is None else context
        own = None if context is None else slice(start, start + x.shape[1])
        attended = self.attn(
            apply_norm(self.norm1, first.take(tokens)),
            first.take(length),
            n_slots,
            own if rows is None else [start + row for row in rows],
            first.take(valid),
        )
        branch = dropout(attended, self.dropout, self.training)
        y = first.add(take_rows(x, rows), branch)
        return second.add(y, self.mlp(apply_norm(self.norm2, second.take(y))))

    def reset_parameters(self) -> None:
        """Draw weights anew, as in a new block."""
        for norm in (self.norm1, self.norm2):
            norm.reset_parameters()
        self.attn.reset_parameters()
        self.mlp.reset_parameters()

    def sample_keep(self, x: Tensor) -> tuple[Keep, Keep]:
        """Which examples of ``[B, S, C]`` keep the attention branch, and which the MLP branch.

        Under dropout nothing is skipped: its masks are drawn for every element.
        """
        if not self.training or self.drop_rate == 0.0:
            return ALL, ALL
        skip = self.skip_dropped and self.dropout == 0.0
        first = sample_keep(x, self.drop_rate, skip=skip)
        return first, sample_keep(x, self.drop_rate, skip=skip)

    def drop(self, branch: Tensor) -> Tensor:
        """What attention adds, under dropout."""
        return dropout(branch, self.dropout, True) if self.training and self.dropout else branch

    def is_mlp_unmodified(self) -> bool:
        """Whether the MLP's Linears and GELU may be run in its place."""
        mlp = self.mlp
        linears = (getattr(mlp, name) for name in ("fc1", "fc2"))
        unmodified = are_unmodified((Mlp, [mlp]), (nn.Linear, linears))
        return unmodified and not (mlp.training and mlp.dropout > 0.0)

    def extra_repr(self) -> str:
        """Show the rates that no submodule shows."""
        return f"drop_rate={self.drop_rate}, dropout={self.dropout}"


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm of ``x`` in the dtype of ``x``; computed in that of its weights, if that is wider."""
    weight = getattr(norm, "weight", None)
    wide = x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype)
    return norm(x) if wide == x.dtype else norm(x.to(wide)).to(x.dtype)
