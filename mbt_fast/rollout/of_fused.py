"""The attentions of fused encoders that have run."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mbt_fast.models import FusedTowers
from mbt_fast.models.encoders import look_up
from mbt_fast.models.fused_classifier import FusedClassifier, feature_rows
from mbt_fast.ops.streams import valid_rows, wide_dtype
from mbt_fast.rollout.attention import Attention
from mbt_fast.rollout.observe import Grid, Observed, Target, effects_of, hooked, leaves
from mbt_fast.rollout.steps import Step

Lengths = Mapping[str, Tensor]


class _Watch:
    """Keeps what passes the parts of the towers in a forward, in the order of the calls."""

    def __init__(self, fused: FusedTowers, *, with_heads: bool) -> None:
        """Find the parts: first norms, what takes attention's output, what cuts patches."""
        self.streams: list[Tensor] = []
        self.heads: list[Tensor] = []
        self.patches: dict[nn.Module, torch.Size] = {}
        self.before: dict[nn.Module, Any] = {}
        self.after: dict[nn.Module, Any] = {}
        for m, tower in fused.towers.items():
            family = fused.family_of(m)
            for layer in fused.layers_of(m):
                self.before[look_up(layer, family.parts[0])] = self._enter
                if with_heads:
                    receivers = (look_up(layer, path) for path in family.takes_heads)
                    self.before[next(filter(None, receivers))] = self._leave
            convolution = look_up(family.body(tower), family.cuts_patches)
            if convolution is not None:
                self.after[convolution] = self._cut

    def _enter(self, norm: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        self.streams.append(args[0])

    def _leave(self, part: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        self.heads.append(args[0])

    def _cut(self, convolution: nn.Module, args: tuple[Tensor, ...], patches: Tensor) -> None:
        self.patches[convolution] = patches.shape


def observe_fused(
    model: FusedTowers | FusedClassifier,
    inputs: Mapping[str, Tensor],
    lengths: Mapping[str, Tensor | None] | None,
    target: Target | None,
) -> Observed:
    """Run the model, and keep the input of each layer.

    Every stream is given a length, so that the model takes all layers apart, as it does for
    padding; it then calls their parts, which is what can be watched.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A name, shape, device or value does not fit.
    """
    fused = model if isinstance(model, FusedTowers) else model.fused
    given = {m: length for m, length in (lengths or {}).items() if length is not None}
    names = [m for m in fused.towers if m in inputs]
    watch = _Watch(fused, with_heads=target is not None)
    effects: Sequence[Tensor | None] = ()
    with torch.set_grad_enabled(target is not None):
        if target is not None:
            inputs = leaves(inputs)
        with hooked(watch.before, watch.after):
            logits = _run(model, inputs, given)
        if target is not None:
            effects = effects_of(logits, names, given, target, watch.heads)
    first = watch.streams[0]
    early = fused.n_slots if fused.fusion_layer == 0 else 0
    own = {m: x.shape[1] - early for m, x in zip(names, watch.streams, strict=False)}
    if isinstance(model, FusedClassifier):  # it knows but present and absent
        given = {m: torch.where(length > 0, own[m], 0) for m, length in given.items()}
    steps = _steps(fused, names, given, watch.streams, effects)
    return Observed(
        steps=steps,
        grids={m: _grid(fused, m, inputs[m], own[m], watch.patches) for m in names},
        valid={m: valid_rows(given.get(m), own[m], 0) for m in names},
        start={m: _classified(fused, m, own[m]) for m in names},
        joint=False,
        num_heads=steps[0].attentions[0].packed().shape[3],
        batch=len(first),
        dtype=wide_dtype(first.dtype),
        device=first.device,
    )


def _run(
    model: FusedTowers | FusedClassifier, inputs: Mapping[str, Tensor], given: Lengths
) -> dict[str, Tensor]:
    """Logits, or tokens where there is no classifier."""
    if isinstance(model, FusedClassifier):
        present = {m: x.new_ones(len(x), dtype=torch.int32) for m, x in inputs.items()}
        return model.forward_modalities(inputs, {**present, **given})
    streams = model.embed_all(inputs)
    whole = {m: x.new_full((len(x),), x.shape[1], dtype=torch.int32) for m, x in streams.items()}
    return model.encode(streams, {**whole, **given})


def _steps(
    fused: FusedTowers,
    names: Sequence[str],
    lengths: Lengths,
    streams: Sequence[Tensor],
    effects: Sequence[Tensor | None],
) -> list[Step]:
    """One for each layer; streams and effects come layer by layer, in the order of the names."""
    present = {m: lengths[m] > 0 if m in lengths else None for m in names}
    inputs, gradients = iter(streams), iter(effects)
    steps = []
    for index in range(fused.num_layers):
        n_slots = fused.n_slots if index >= fused.fusion_layer else 0
        attentions = []
        for m in names:
            x, layer = next(inputs), fused.layers_of(m)[index]
            valid = valid_rows(lengths.get(m), x.shape[1], n_slots)
            packed = partial(fused.family_of(m).packed, layer, x)
            attention = Attention((m,), packed, slice(None), valid)
            attentions.append(attention.with_effect(next(gradients, None)))
        steps.append(Step(attentions, n_slots, present))
    return steps


def _classified(fused: FusedTowers, modality: str, n_tokens: int) -> range:
    """The tokens whose mean is the feature of a stream."""
    body = fused.family_of(modality).body(fused.towers[modality])
    return range(n_tokens)[feature_rows(body)]


def _grid(
    fused: FusedTowers,
    modality: str,
    x: Tensor,
    n_tokens: int,
    patches: Mapping[nn.Module, torch.Size],
) -> Grid:
    """By the patches that the tower's convolution has cut; without one, patches in a row."""
    family = fused.family_of(modality)
    body = family.body(fused.towers[modality])
    shape = patches.get(look_up(body, family.cuts_patches))
    if shape is None:
        extra = feature_rows(body).stop or 0
        return Grid((n_tokens - extra,), extra)
    frames = shape[0] // len(x) if x.ndim == 5 and len(shape) == 4 else None
    swapped = family.swaps_axes(x)
    along = tuple(shape[2:])[:: -1 if swapped else 1]
    extra = n_tokens // (frames or 1) - prod(along)
    return Grid(along, extra, frames, swapped)
