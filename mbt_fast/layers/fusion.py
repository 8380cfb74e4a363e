"""One layer of all modalities, and the ways in which their streams may pass through it."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mbt_fast import dispatch
from mbt_fast.functional import (
    bottleneck_attention,
    dense_attention,
    residual_add,
    share_slots_,
)
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
        self._backend = self._norms = self._sums = "auto"

    def set_backend(self, backend: str) -> None:
        """Choose the backend of attention, and of norms, GELU and the last sum where it has them.

        A backend without them leaves them to stock PyTorch, whose are the reference's.
        """
        self._backend = backend
        gelu, self._norms, self._sums = (
            backend if dispatch.implements(backend, op) else "reference"
            for op in ("bias_gelu", "add_layer_norm", "residual_add")
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
            sums, branches = self._pass_within(streams, lengths, survivors, n_slots)
        else:
            if pairwise:
                heads = self._attend_to_all(streams, lengths, kept, rows)
            else:
                masks = {SHARED: valid} if SHARED in streams else _masks(streams, lengths, n_slots)
                heads = {
                    m: self._attend_densely(m, x, masks[m], kept[m], rows)
                    for m, x in streams.items()
                }
            sums, branches = self._add_and_pass_mlps(streams, heads, survivors, rows)
        of_mlps = [of_mlp for _, of_mlp in survivors.values()]
        padding = [lengths.get(modality) if rows is None else None for modality in streams]
        shared = n_slots if rows is None else 0
        outs = add_mlps(sums, branches, of_mlps, shared, padding, self._sums)
        return dict(zip(streams, outs, strict=True))

    def _add_and_pass_mlps(
        self, streams: Streams, heads: Streams, survivors: Mapping[str, Pair], rows: Rows
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Streams with their attention branches added, and what their MLPs make of these."""
        pairs = [
            self.block_of(m).add_and_pass_mlp(take_rows(x, rows), heads[m], survivors[m])
            for m, x in streams.items()
        ]
        return [total for total, _ in pairs], [branch for _, branch in pairs]

    def _pass_within(
        self, streams: Streams, lengths: Lengths, survivors: Mapping[str, Pair], n_slots: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """A layer with self-attention inside each stream, up to what ``add_mlps`` adds."""
        blocks = [self.block_of(modality) for modality in streams]
        kept = [survivors[modality][0] for modality in streams]
        padding = [k.take(lengths.get(m)) for m, k in zip(streams, kept, strict=True)]
        call = (blocks, list(streams.values()), [survivors[m] for m in streams])
        norms = choose_norms(*call, self._norms)
        if norms != "reference":
            return pass_streams(*call, partial(self._attend_within, padding, n_slots), norms)
        packed = [
            self.block_of(m).packed(k.take(x))
            for (m, x), k in zip(streams.items(), kept, strict=True)
        ]
        heads = self._attend_within(padding, n_slots, packed)
        by_stream = dict(zip(streams, heads, strict=True))
        return self._add_and_pass_mlps(streams, by_stream, survivors, None)

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


def add_mlps(
    sums: Sequence[Tensor],
    branches: Sequence[Tensor],
    survivors: Sequence[Survivors],
    n_slots: int,
    lengths: Sequence[Tensor | None],
    backend: str,
) -> list[Tensor]:
    """The end of a layer: each stream's MLP is added, and the slots are shared (Eq. 9).

    Slots or masks take one call of the op, unless a branch was computed for some examples only, or
    streams have different dtypes, before or after the sum.
    """
    keep = [of_mlp.mask for of_mlp in survivors]
    fuses = (n_slots > 0 and len(sums) > 1) or any(mask is not None for mask in keep)
    skipped = any(of_mlp.index is not None for of_mlp in survivors)
    pairs = list(zip(sums, branches, strict=True))
    dtypes = {torch.promote_types(x.dtype, branch.dtype) for x, branch in pairs}
    if not fuses or skipped or len(dtypes | {x.dtype for x in sums}) > 1:
        each = zip(pairs, survivors, strict=True)
        outs = [of_mlp.add(x, branch) for (x, branch), of_mlp in each]
        share_slots_(outs, n_slots, lengths=lengths)
        return outs
    return residual_add(
        sums,
        [branch.to(x.dtype) for x, branch in pairs],
        keep=keep,
        n_bottlenecks=n_slots,
        lengths=lengths,
        backend=backend,
    )


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
