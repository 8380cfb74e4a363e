"""From one modality's input to its stream of tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mbt_fast.ops.streams import drop_padding, valid_rows

CHANNELS = 3
TOKEN_STD = 0.02  # position embeddings and bottleneck tokens
# flax cuts its truncated normal at two standard deviations, and scales it to the right variance.
TRUNCATED_STD = 0.87962566103423978


class PatchProjection(nn.Module):
    """Linear map of non-overlapping patches: a convolution whose stride is its kernel.

    Weights have the layout of that convolution, ``[C, 3, *patch]``; computed as one matrix product.

    Args:
        patch_size: ``(t, h, w)`` for video, ``(time, mel)`` for spectrograms.
        dim: Channels ``C`` of a token.
    """

    def __init__(self, patch_size: Sequence[int], dim: int) -> None:
        """Allocate kernel and bias."""
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.weight = nn.Parameter(torch.empty(dim, CHANNELS, *patch_size))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map ``[B, 3, *input_size]`` to ``[B, patches, C]``, the last axis of the grid fastest.

        Patches that are not ``valid``, bool ``[B, patches]``, count as zero, whatever they hold.
        """
        return linear(drop_padding(self.patches(x), valid), self.weight.flatten(1), self.bias)

    def reset_parameters(self) -> None:
        """Draw a LeCun-normal kernel, flax's default for convolutions."""
        std = (self.weight[0].numel() ** -0.5) / TRUNCATED_STD
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(self.bias)

    def patches(self, x: Tensor) -> Tensor:
        """Cut ``[B, 3, *input_size]`` into ``[B, patches, 3 * patch]``."""
        axes = len(self.patch_size)
        for axis, part in enumerate(self.patch_size):
            x = x.unflatten(2 + 2 * axis, (-1, part))  # [B, 3, g1, p1, g2, p2, ...]
        grid, within = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
        return x.permute(0, *grid, 1, *within).flatten(1 + axes).flatten(1, axes)

    def extra_repr(self) -> str:
        """Show the layout."""
        return f"patch_size={self.patch_size}, dim={self.weight.shape[0]}"


class StreamEmbedding(nn.Module):
    """Patches, CLS in front if there is one, learned positions (Eq. 1).

    Args:
        input_size: ``(frames, height, width)`` or ``(time, mel)``.
        patch_size: As many sizes as ``input_size``.
        n_tokens: Own tokens ``N``, CLS included.
        dim: Channels ``C``.
        n_cls: CLS tokens, 1 or 0.
        frames: Which frames of a video are read; ``None``: all.
    """

    def __init__(
        self,
        input_size: Sequence[int],
        patch_size: Sequence[int],
        n_tokens: int,
        dim: int,
        *,
        n_cls: int = 1,
        frames: Sequence[int] | None = None,
    ) -> None:
        """Allocate the parameters."""
        super().__init__()
        self.input_size = tuple(input_size)
        self.frames = None if frames is None else tuple(frames)
        self.proj = PatchProjection(patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if n_cls else None
        self.pos_embed = nn.Parameter(torch.empty(1, n_tokens, dim))

    def reset_parameters(self) -> None:
        """Draw weights as the official code does: positions from N(0, 0.02^2), CLS zero."""
        self.proj.reset_parameters()
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)
        nn.init.normal_(self.pos_embed, std=TOKEN_STD)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: ``(3, frames, height, width)`` or ``(time, mel)``."""
        video = len(self.input_size) == 3
        return (CHANNELS, *self.input_size) if video else self.input_size

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Embed ``[B, *input_shape]`` as own tokens ``[B, N, C]``; rows of padding are zero.

        A spectrogram becomes three equal channels, as in the official code: the kernel then has
        the official shape, and trains as the official one does.
        """
        if len(self.input_size) == 2:
            x = x.unsqueeze(1).expand(-1, CHANNELS, -1, -1)
        elif self.frames is not None:
            x = torch.stack([x[:, :, frame] for frame in self.frames], dim=2)
        valid = valid_rows(length, self.pos_embed.shape[1], 0)
        if self.cls_token is None:
            return drop_padding(self.proj(x, valid) + self.pos_embed, valid)
        patches = self.proj(x, None if valid is None else valid[:, 1:])
        cls = self.cls_token.to(patches.dtype).expand(patches.shape[0], -1, -1)
        tokens = torch.cat([cls, patches], dim=1) + self.pos_embed
        return drop_padding(tokens, valid)
