"""One layer of all modalities, and the ways in which their streams may pass through it."""

from collections.abc import Mapping
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
        self._backend = "auto"

    def set_backend(self, backend: str) -> None:
        """Choose the backend of the layer's attention."""
        self._backend = backend

    def block_of(self, modality: str) -> Block:
        """The block through which the stream of ``modality`` passes."""
        return cast(Block, self[SHARED if SHARED in self else modality])

    def forward(
        self,
        streams: Streams,
        lengths: Lengths,
        *,
        n_slots: int = 0,
        pairwise: bool = False,
        valid: Tensor | None = None,
    ) -> Streams:
        """Pass the streams through the layer.

        Args:
            streams: ``[B, S_m, C]`` per modality; or, for joint self-attention (Eq. 4), the rows of
                all modalities as the one stream ``"shared"``.
            lengths: int32 ``[B]`` per modality that has padding.
            n_slots: ``P``, the last rows of every stream that the layer shares (Eq. 7-9); 0 leaves
                the streams to themselves.
            pairwise: Let every stream's queries attend to the keys of all (Eq. 5-6).
            valid: bool ``[B, S]``, the rows of joined streams that take part, ``None`` for all.

        Returns:
            The streams after the layer.
        """
        if pairwise:
            heads = self._attend_to_all(streams, lengths)
        elif valid is not None:
            heads = {SHARED: self._attend_masked(streams[SHARED], valid)}
        else:
            heads = self._attend_within(streams, n_slots, lengths)
        fused = {m: self.block_of(m).finish(x, heads[m]) for m, x in streams.items()}
        padding = [lengths.get(modality) for modality in streams]
        share_slots_(list(fused.values()), n_slots, lengths=padding)
        return fused

    def _attend_within(self, streams: Streams, n_slots: int, lengths: Lengths) -> Streams:
        """Self-attention of each stream, slots included, all in one call of the op.

        Heads below the op's smallest size are padded with zeros, which changes nothing.
        """
        packed = [self.block_of(modality).packed(x) for modality, x in streams.items()]
        head_dim = packed[0].shape[-1]
        missing = max(MIN_HEAD_DIM - head_dim, 0)
        if missing:
            packed = [pad(stream, (0, missing)) for stream in packed]
        heads = bottleneck_attention(
            packed,
            n_slots,
            lengths=[lengths.get(modality) for modality in streams],
            scale=head_dim**-0.5,
            backend=self._backend,
        )
        return {m: out[..., :head_dim] for m, out in zip(streams, heads, strict=True)}

    def _attend_to_all(self, streams: Streams, lengths: Lengths) -> Streams:
        """Queries of each stream, keys and values of all streams under that stream's weights."""
        tokens = torch.cat(list(streams.values()), dim=1)
        valid, rows = joint_valid(streams, lengths), row_ranges(streams)
        heads = {}
        for modality in streams:
            block = self.block_of(modality)
            normed = block.norm1(tokens)
            query = block.attn.query(normed[:, rows[modality]])
            key, value = block.attn.key_value(normed)
            out = dense_attention(query, key, value, valid=valid, backend=self._backend)
            heads[modality] = out.transpose(1, 2)
        return heads

    def _attend_masked(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Joint self-attention with padding somewhere among the rows."""
        packed = self.block_of(SHARED).packed(tokens)
        query, key, value = (part.transpose(1, 2) for part in packed.unbind(2))
        out = dense_attention(query, key, value, valid=valid, backend=self._backend)
        return out.transpose(1, 2)


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
