"""One layer of all modalities, and the ways in which their streams may pass through it."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mbt_fast import dispatch
from mbt_fast.functional import bottleneck_attention, dense_attention, share_slots_
from mbt_fast.layers.block import Block
from mbt_fast.layers.rows import Rows, joint_valid, row_ranges, take_rows
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
        rows: Sequence[int] | None = None,
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
            rows: Rows of every stream to compute, ``None`` for all. The others are keys and values
                only, and no slots are shared. A backend without ``dense_attention`` leaves these
                few queries to ``"auto"``.

        Returns:
            The streams after the layer, of ``len(rows)`` rows if these are given.
        """
        if pairwise:
            heads = self._attend_to_all(streams, lengths, rows)
        elif valid is None and rows is None:
            heads = self._attend_within(streams, n_slots, lengths)
        else:
            masks = {SHARED: valid} if SHARED in streams else _masks(streams, lengths, n_slots)
            heads = {m: self._attend_densely(m, x, masks[m], rows) for m, x in streams.items()}
        fused = {
            modality: self.block_of(modality).finish(take_rows(x, rows), heads[modality])
            for modality, x in streams.items()
        }
        if rows is None:
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

    def _attend_to_all(
        self, streams: Streams, lengths: Lengths, rows: Sequence[int] | None
    ) -> Streams:
        """Queries of each stream, keys and values of all streams under that stream's weights."""
        tokens = torch.cat(list(streams.values()), dim=1)
        valid = joint_valid(streams, lengths)
        heads = {}
        for modality, own in row_ranges(streams).items():
            queries = own if rows is None else [own.start + row for row in rows]
            heads[modality] = self._attend_densely(modality, tokens, valid, queries)
        return heads

    def _attend_densely(
        self, modality: str, tokens: Tensor, valid: Tensor | None, rows: Rows
    ) -> Tensor:
        """Queries of some rows, keys and values of all valid ones, under a modality's weights."""
        query, key, value = self.block_of(modality).query_key_value(tokens, rows)
        backend = self._backend
        if isinstance(rows, Sequence) and not dispatch.implements(backend, "dense_attention"):
            backend = "auto"
        out = dense_attention(query, key, value, valid=valid, backend=backend)
        return out.transpose(1, 2)


def _masks(streams: Streams, lengths: Lengths, n_slots: int) -> dict[str, Tensor | None]:
    """Which rows of each stream are valid."""
    return {m: valid_rows(lengths.get(m), x.shape[1], n_slots) for m, x in streams.items()}


def enter_fusion(streams: Streams, bottleneck_tokens: Tensor) -> Streams:
    """Append each stream's copy of the bottleneck tokens ``[1, P, C]``, its slots."""
    fused = {}
    for modality, x in streams.items():
        slots = bottleneck_tokens.to(x.dtype).expand(x.shape[0], -1, -1)
        fused[modality] = torch.cat([x, slots], dim=1)
    return fused
