"""The blocks of a layer called one by one, for what is wrapped around them or listens to them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mbt_fast.layers.attention import Attention
from mbt_fast.layers.block import Block
from mbt_fast.layers.hooks import are_unmodified, is_everything_watched
from mbt_fast.layers.rows import Lengths, Streams, joint_valid, row_ranges
from mbt_fast.ops.streams import share_slots


def are_unwatched(blocks: Sequence[Block]) -> bool:
    """Whether nobody waits for a ``Block``, its ``Attention``, or every module, to be called."""
    attentions = (block.attn for block in blocks)
    unmodified = are_unmodified((Block, blocks), (Attention, attentions))
    return unmodified and not is_everything_watched()


def call_blocks(
    blocks: Sequence[Block],
    streams: Streams,
    lengths: Lengths,
    n_slots: int,
    pairwise: bool,
    valid: Tensor | None,
    rows: Sequence[int] | None,
) -> Streams:
    """``FusionLayer.forward``, block by block, and no result is written to: hooks may keep it."""
    context, ranges = None, row_ranges(streams)
    if pairwise:
        context, valid = torch.cat(list(streams.values()), dim=1), joint_valid(streams, lengths)
    outs = [
        block(x, lengths.get(m), n_slots, rows, valid, context, ranges[m].start if pairwise else 0)
        for block, (m, x) in zip(blocks, streams.items(), strict=True)
    ]
    if n_slots and rows is None and len(outs) > 1:
        outs = share_slots(outs, n_slots, [lengths.get(m) for m in streams])
    return dict(zip(streams, outs, strict=True))
