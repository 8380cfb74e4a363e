"""The attentions of an ``MBT`` that has run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from mbt_fast.layers import Block, FusionLayer
from mbt_fast.layers.block import apply_norm
from mbt_fast.layers.fusion_layer import SHARED
from mbt_fast.layers.rows import joint_valid, row_ranges
from mbt_fast.models import MBT
from mbt_fast.ops.streams import valid_rows, wide_dtype
from mbt_fast.rollout.attention import Attention
from mbt_fast.rollout.observe import Grid, Observed, Target, effects_of, hooked, leaves
from mbt_fast.rollout.steps import Step


@dataclass(frozen=True)
class Call:
    """A call of a layer: its arguments, and the outputs of attention, ``[B, rows, C]`` each."""

    layer: FusionLayer
    streams: dict[str, Tensor]
    lengths: Mapping[str, Tensor]
    n_slots: int = 0
    pairwise: bool = False
    valid: Tensor | None = None
    rows: Sequence[int] | None = None
    heads: list[Tensor] = field(default_factory=list)


def observe_mbt(
    model: MBT,
    inputs: Mapping[str, Tensor],
    lengths: Mapping[str, Tensor] | None,
    target: Target | None,
) -> Observed:
    """Run the model, and keep the input of each layer.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A name, shape, device or value does not fit the configuration.
    """
    given = model.check_inputs(inputs, lengths)
    config = model.config
    names = [m for m in config.modalities if m in inputs]
    calls: list[Call] = []

    def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(cast(FusionLayer, layer), *args, **kwargs))

    def leave(proj: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> None:
        calls[-1].heads.append(args[0])

    hooks: dict[nn.Module, Any] = dict.fromkeys(model.layers, enter)
    effects: Sequence[Tensor | None] | None = None
    if target is None:
        with torch.no_grad(), hooked(hooks):
            model.forward_features(inputs, lengths)
    else:
        blocks = (cast(Block, block) for layer in model.layers for block in layer.values())
        hooks |= dict.fromkeys((block.attn.proj for block in blocks), leave)
        with torch.enable_grad(), hooked(hooks):
            logits = model.forward_modalities(leaves(inputs), lengths)
        effects = effects_of(
            logits, names, given, target, [x for call in calls for x in call.heads]
        )
    steps = list(_steps(calls, names, effects))
    valid = {m: valid_rows(given.get(m), config.n_tokens(m), 0) for m in names}
    grids = {m: Grid(config.grid(m), extra=config.n_cls) for m in names}
    first = inputs[names[0]]
    return Observed(
        steps=steps,
        grids=grids,
        valid=valid,
        start={m: [0] if config.n_cls else range(config.n_tokens(m)) for m in names},
        joint=config.classifier == "gap",
        num_heads=config.num_heads,
        batch=len(first),
        dtype=wide_dtype(first.dtype),
        device=first.device,
    )


def _steps(
    calls: Sequence[Call], names: Sequence[str], effects: Sequence[Tensor | None] | None
) -> Iterator[Step]:
    """One for each call, with the gradients of its attentions."""
    rest = iter(effects or ())
    for call in calls:
        attentions = [a.with_effect(next(rest, None)) for a in _attentions(call, names)]
        present = {m: call.lengths[m] > 0 if m in call.lengths else None for m in call.streams}
        yield Step(attentions, call.n_slots, present)


def _attentions(call: Call, names: Sequence[str]) -> list[Attention]:
    """In the order of the streams."""
    everywhere = slice(None) if call.rows is None else list(call.rows)
    if SHARED in call.streams:
        packed = partial(_packed, call.layer.block_of(SHARED), [call.streams[SHARED]])
        return [Attention(tuple(names), packed, everywhere, call.valid)]
    if call.pairwise:
        valid = joint_valid(call.streams, call.lengths)
        xs, ranges = list(call.streams.values()), row_ranges(call.streams)
        return [
            Attention(
                tuple(call.streams),
                partial(_packed, call.layer.block_of(m), xs),
                own if call.rows is None else [own.start + row for row in call.rows],
                valid,
            )
            for m, own in ranges.items()
        ]
    return [
        Attention(
            (m,),
            partial(_packed, call.layer.block_of(m), [x]),
            everywhere,
            valid_rows(call.lengths.get(m), x.shape[1], call.n_slots),
        )
        for m, x in call.streams.items()
    ]


def _packed(block: Block, streams: Sequence[Tensor]) -> Tensor:
    """Query, key and value ``[B, K, 3, H, D]`` of joined streams, by the block's own modules."""
    x = streams[0] if len(streams) == 1 else torch.cat(list(streams), dim=1)
    return block.attn.split(block.attn.qkv(apply_norm(block.norm1, x)))
