"""One layer of all modalities, and the four ways in which their streams may pass through it."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mbt_fast.functional import bottleneck_attention, dense_attention, share_slots_
from mbt_fast.layers.block import Block
from mbt_fast.reference import valid_rows
from mbt_fast.validation import MIN_HEAD_DIM

SHARED = "shared"  # the name of the one block of a shared encoder

Streams = dict[str, Tensor]  # modality -> [B, S_m, C]
Lengths = Mapping[str, Tensor]  # modality -> int32 [B]; a modality without padding has no entry


class FusionLayer(nn.ModuleDict):
    """The blocks of one layer, by modality, or one block ``"shared"`` for all of them.

    Args:
        blocks: ``Block`` per modality, or ``{"shared": Block}``.
    """

    def __init__(self, blocks: Mapping[str, Block]) -> None:
        """Keep the blocks."""
        super().__init__(blocks)
        self.backend = "auto"

    def block(self, modality: str) -> Block:
        """The block through which the stream of ``modality`` passes."""
        return cast(Block, self[SHARED if SHARED in self else modality])

    def bottleneck(self, streams: Streams, n_slots: int, lengths: Lengths) -> Streams:
        """Attention inside each stream, slots included; then the slots are shared (Eq. 7-9).

        With ``n_slots == 0`` the layer is unimodal. The streams do not meet anywhere else.
        """
        padding = [lengths.get(modality) for modality in streams]
        packed = [self.block(modality).packed(x) for modality, x in streams.items()]
        heads = self._attend(packed, n_slots, padding)
        fused = {
            modality: self.block(modality).finish(x, out)
            for (modality, x), out in zip(streams.items(), heads, strict=True)
        }
        share_slots_(list(fused.values()), n_slots, lengths=padding)
        return fused

    def pairwise(self, streams: Streams, lengths: Lengths) -> Streams:
        """Every stream's queries attend to the keys of all streams, own weights (Eq. 5-6)."""
        tokens = torch.cat(list(streams.values()), dim=1)
        valid = joint_valid(streams, lengths)
        rows = row_ranges(streams)
        fused = {}
        for modality, x in streams.items():
            block = self.block(modality)
            normed = block.norm1(tokens)
            query = block.attn.query(normed[:, rows[modality]])
            key, value = block.attn.key_value(normed)
            heads = dense_attention(query, key, value, valid=valid, backend=self.backend)
            fused[modality] = block.finish(x, heads.transpose(1, 2))
        return fused

    def joint(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Self-attention over the tokens ``[B, sum of S_m, C]`` of all modalities (Eq. 4)."""
        block = self.block(SHARED)
        packed = block.packed(tokens)
        if valid is None:
            (heads,) = self._attend([packed], 0, [None])
        else:
            query, key, value = (part.transpose(1, 2) for part in packed.unbind(2))
            out = dense_attention(query, key, value, valid=valid, backend=self.backend)
            heads = out.transpose(1, 2)
        return block.finish(tokens, heads)

    def _attend(
        self, packed: list[Tensor], n_slots: int, lengths: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """The op. Heads below its smallest size are padded with zeros, which changes nothing."""
        head_dim = packed[0].shape[-1]
        missing = max(MIN_HEAD_DIM - head_dim, 0)
        if missing:
            packed = [pad(stream, (0, missing)) for stream in packed]
        heads = bottleneck_attention(
            packed, n_slots, lengths=lengths, scale=head_dim**-0.5, backend=self.backend
        )
        return [out[..., :head_dim] for out in heads] if missing else heads


def enter_fusion(streams: Streams, bottleneck_tokens: Tensor) -> Streams:
    """Append each stream's copy of the bottleneck tokens ``[1, P, C]``, its slots."""
    fused = {}
    for modality, x in streams.items():
        slots = bottleneck_tokens.to(x.dtype).expand(x.shape[0], -1, -1)
        fused[modality] = torch.cat([x, slots], dim=1)
    return fused


def row_ranges(streams: Streams) -> dict[str, slice]:
    """Where each stream's rows lie when all streams are joined."""
    ranges, start = {}, 0
    for modality, x in streams.items():
        ranges[modality] = slice(start, start + x.shape[1])
        start += x.shape[1]
    return ranges


def joint_valid(streams: Streams, lengths: Lengths) -> Tensor | None:
    """Which of the joined rows are valid: bool ``[B, sum of S_m]``, or ``None`` for all."""
    if not lengths:
        return None
    masks = []
    for modality, x in streams.items():
        valid = valid_rows(lengths.get(modality), x.shape[1], 0)
        masks.append(x.new_ones(x.shape[:2], dtype=torch.bool) if valid is None else valid)
    return torch.cat(masks, dim=1)
