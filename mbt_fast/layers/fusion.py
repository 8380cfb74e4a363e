"""One layer of all modalities, and the ways in which their streams may pass through it."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mbt_fast import dispatch
from mbt_fast.functional import bottleneck_attention, dense_attention, share_slots_
from mbt_fast.layers.all_streams import choose_norms, pass_streams
from mbt_fast.layers.block import Block
from mbt_fast.layers.rows import Rows, joint_valid, row_ranges, take_rows
from mbt_fast.layers.savings import Savings
from mbt_fast.layers.stochastic_depth import Survivors
from mbt_fast.reference import valid_rows
from mbt_fast.validation import MIN_HEAD_DIM

SHARED = "shared"  # the name of the one block of a shared encoder

Pair = tuple[Survivors, Survivors]  # who keeps the attention branch, who the MLP's
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
        self._backend = self._norms = "auto"

    def set_backend(self, backend: str) -> None:
        """Choose the backend of the layer's attention, and of its norms and GELU where it has them.

        A backend without them leaves them to stock PyTorch, whose are the reference's.
        """
        self._backend = backend
        gelu, self._norms = (
            backend if dispatch.implements(backend, op) else "reference"
            for op in ("bias_gelu", "add_layer_norm")
        )
        for block in self.values():
            cast(Block, block).set_backend(gelu)

    def set_savings(self, savings: Savings) -> None:
        """Tell the blocks what they need neither compute nor keep."""
        for block in self.values():
            cast(Block, block).savings = savings

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
        survivors = {m: self.block_of(m).draw_survivors(x) for m, x in streams.items()}
        kept = {modality: attention for modality, (attention, _) in survivors.items()}
        if not pairwise and valid is None and rows is None:
            fused = self._pass_within(streams, lengths, survivors, n_slots)
        else:
            if pairwise:
                heads = self._attend_to_all(streams, lengths, kept, rows)
            else:
                masks = {SHARED: valid} if SHARED in streams else _masks(streams, lengths, n_slots)
                heads = {
                    m: self._attend_densely(m, x, masks[m], kept[m], rows)
                    for m, x in streams.items()
                }
            fused = self._finish(streams, heads, survivors, rows)
        if rows is None:
            padding = [lengths.get(modality) for modality in streams]
            share_slots_(list(fused.values()), n_slots, lengths=padding)
        return fused

    def _finish(
        self, streams: Streams, heads: Streams, survivors: Mapping[str, Pair], rows: Rows
    ) -> Streams:
        """Both residual branches, block by block."""
        return {
            m: self.block_of(m).finish(take_rows(x, rows), heads[m], survivors[m])
            for m, x in streams.items()
        }

    def _pass_within(
        self, streams: Streams, lengths: Lengths, survivors: Mapping[str, Pair], n_slots: int
    ) -> Streams:
        """All of a layer with self-attention inside each stream, but for the shared slots."""
        blocks = [self.block_of(modality) for modality in streams]
        kept = [survivors[modality][0] for modality in streams]
        padding = [k.take(lengths.get(m)) for m, k in zip(streams, kept, strict=True)]
        call = (blocks, list(streams.values()), [survivors[m] for m in streams])
        norms = choose_norms(*call, self._norms)
        if norms != "reference":
            outs = pass_streams(*call, partial(self._attend_within, padding, n_slots), norms)
            return dict(zip(streams, outs, strict=True))
        packed = [
            self.block_of(m).packed(k.take(x))
            for (m, x), k in zip(streams.items(), kept, strict=True)
        ]
        heads = self._attend_within(padding, n_slots, packed)
        return self._finish(streams, dict(zip(streams, heads, strict=True)), survivors, None)

    def _attend_within(
        self, padding: Sequence[Tensor | None], n_slots: int, packed: list[Tensor]
    ) -> list[Tensor]:
        """Self-attention of each stream, slots included, all in one call of the op.

        A call takes one batch size; if not as many examples of each stream are kept, each stream
        has a call of its own. Heads below the op's smallest size are padded with zeros, which
        changes nothing.
        """
        head_dim = packed[0].shape[-1]
        missing = max(MIN_HEAD_DIM - head_dim, 0)
        if missing:
            packed = [pad(stream, (0, missing)) for stream in packed]
        alike = all(stream.shape[0] == packed[0].shape[0] for stream in packed)
        calls = [slice(None)] if alike else [slice(m, m + 1) for m in range(len(packed))]
        return [
            out[..., :head_dim]
            for part in calls
            for out in bottleneck_attention(
                packed[part],
                n_slots,
                lengths=padding[part],
                scale=head_dim**-0.5,
                backend=self._backend,
            )
        ]

    def _attend_to_all(
        self,
        streams: Streams,
        lengths: Lengths,
        kept: Mapping[str, Survivors],
        rows: Sequence[int] | None,
    ) -> Streams:
        """Queries of each stream, keys and values of all streams under that stream's weights."""
        tokens = torch.cat(list(streams.values()), dim=1)
        valid = joint_valid(streams, lengths)
        heads = {}
        for m, own in row_ranges(streams).items():
            queries = own if rows is None else [own.start + row for row in rows]
            heads[m] = self._attend_densely(m, tokens, valid, kept[m], queries)
        return heads

    def _attend_densely(
        self, modality: str, tokens: Tensor, valid: Tensor | None, kept: Survivors, rows: Rows
    ) -> Tensor:
        """Queries of some rows, keys and values of all valid ones, under a modality's weights."""
        query, key, value = self.block_of(modality).query_key_value(kept.take(tokens), rows)
        backend = self._backend
        if isinstance(rows, Sequence) and not dispatch.implements(backend, "dense_attention"):
            backend = "auto"
        out = dense_attention(query, key, value, valid=kept.take(valid), backend=backend)
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
