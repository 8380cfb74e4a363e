"""What happens to the rows of all streams, step by step, and the same backwards for masses.

Attention rollout (Abnar and Zuidema, 2020, arXiv 2005.00928) multiplies the matrices of all
layers. Only the rows that a classifier reads are asked for, so vectors are passed from the last
layer to the first, and no product of two matrices is made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbt_fast.ops.streams import expand
from mbt_fast.rollout.attention import Attention, Heads, Masses, pass_down


@dataclass(frozen=True)
class Step:
    """A layer of some streams, or of all: attentions side by side, then the slots are shared.

    Args:
        attentions: Those of the layer.
        n_slots: ``P``, the last rows of every stream of the model.
        present: Per stream that shares its slots bool ``[B]``, or ``None`` where it is present for
            every example.
    """

    attentions: Sequence[Attention]
    n_slots: int
    present: Mapping[str, Tensor | None]

    @property
    def modalities(self) -> list[str]:
        """The streams that pass through the layer."""
        return list(dict.fromkeys(m for a in self.attentions for m in a.modalities))


@dataclass(frozen=True)
class Exchange:
    """What passes a layer's bottleneck tokens, per modality ``[B, V, P]``.

    Args:
        read: Mass that own tokens of the modality send to each token: what they read from it.
        written: Mass that each token sends to own tokens of the modality: what they wrote to it.
    """

    read: Masses
    written: Masses


@dataclass(frozen=True)
class Rule:
    """How masses pass a layer.

    Args:
        heads: As in ``pass_down``.
        residual: The share that stays where it is, and so takes the residual connection; ``None``
            adds what passes to what stays, the rule of Chefer et al. (2021).
    """

    heads: Heads
    residual: float | None

    def joined(self, stays: Tensor, passes: Tensor) -> Tensor:
        """Both parts of the masses after a layer's attention."""
        if self.residual is None:
            return stays + passes
        return self.residual * stays + (1 - self.residual) * passes

    @property
    def passing(self) -> float:
        """The share that attention takes."""
        return 1.0 if self.residual is None else 1 - self.residual


def walk_down(
    steps: Sequence[Step], masses: Masses, rule: Rule
) -> tuple[Masses, Tensor, list[Exchange]]:
    """Pass masses from the output of the last step to the input of the first.

    Args:
        steps: First to last.
        masses: float64 ``[B, V, S_m]`` per modality, slots included where the last step has some.
        rule: How masses pass a layer.

    Returns:
        Masses of own tokens ``[B, V, N_m]``; those of the learned bottleneck tokens ``[B, V, P]``;
        and what passed the bottlenecks, one entry for each step with slots, first step first.
    """
    exchanges: list[Exchange] = []
    learned = next(iter(masses.values()))[..., :0]
    for step, below in zip(reversed(steps), [*reversed(steps[:-1]), None], strict=True):
        masses = share_down(masses, step)
        masses, exchange = _attend_down(masses, step, rule)
        if exchange is not None:
            exchanges.insert(0, exchange)
        if step.n_slots and (below is None or not below.n_slots):
            masses, learned = _leave_fusion(masses, step.n_slots)
    return masses, learned, exchanges


def share_down(masses: Masses, step: Step) -> Masses:
    """The shared update backwards (transpose of Eq. 9): to each present stream an equal part.

    Where no stream of the step is present, the slots are left as they are.
    """
    if not step.n_slots:
        return masses
    own = {m: x[..., : -step.n_slots] for m, x in masses.items()}
    slots = {m: x[..., -step.n_slots :] for m, x in masses.items()}
    like = next(iter(slots.values()))
    weights = {  # [B] each
        m: like.new_ones(len(like)) if flag is None else flag.to(like.dtype)
        for m, flag in step.present.items()
    }
    count = torch.stack(list(weights.values())).sum(dim=0)
    total = torch.stack(list(slots.values())).sum(dim=0) / expand(count.clamp(min=1), like)
    written = expand(count > 0, like)
    shared = {}
    for m, x in slots.items():
        part = total * expand(weights[m], like) if m in weights else torch.zeros_like(total)
        shared[m] = torch.cat([own[m], torch.where(written, part, x)], dim=-1)
    return shared


def _attend_down(masses: Masses, step: Step, rule: Rule) -> tuple[Masses, Exchange | None]:
    """The attentions of a step backwards, the residual connection included.

    With slots, each one's mass is passed on its own, to see what was written to it.
    """
    names, n_slots = step.modalities, step.n_slots
    passed = {m: torch.zeros_like(masses[m]) for m in names}
    read, written = {}, {}
    for attention in step.attentions:
        joined = torch.cat([masses[m] for m in attention.modalities], dim=-1)
        if n_slots:
            (m,) = attention.modalities
            parts = pass_down(attention, _slots_apart(joined, n_slots), rule.heads)
            parts = parts.unflatten(1, (1 + n_slots, -1))
            read[m] = rule.passing * parts[:, 0, :, -n_slots:]
            written[m] = rule.passing * parts[:, 1:, :, :-n_slots].sum(dim=-1).mT
            passed[m] = passed[m] + parts.sum(dim=1)
            continue
        each = pass_down(attention, joined, rule.heads)
        sizes = [masses[m].shape[-1] for m in attention.modalities]
        for m, part in zip(attention.modalities, each.split(sizes, dim=-1), strict=True):
            passed[m] = passed[m] + part
    after = masses | {m: rule.joined(masses[m], passed[m]) for m in names}
    return after, Exchange(read, written) if n_slots else None


def _slots_apart(masses: Tensor, n_slots: int) -> Tensor:
    """Masses ``[B, V, S]`` of own tokens, then of each slot alone: ``[B, (1 + P) * V, S]``."""
    own = masses.shape[-1] - n_slots
    slots = torch.arange(masses.shape[-1], device=masses.device) - own
    group = torch.arange(-1, n_slots, device=masses.device)  # -1 for own tokens
    chosen = slots.clamp(min=-1) == group[:, None]
    return torch.where(chosen[:, None], masses[:, None], 0).flatten(1, 2)


def _leave_fusion(masses: Masses, n_slots: int) -> tuple[Masses, Tensor]:
    """Own tokens, and the sum over the streams' copies of the learned bottleneck tokens."""
    slots = torch.stack([x[..., -n_slots:] for x in masses.values()])
    return {m: x[..., :-n_slots] for m, x in masses.items()}, slots.sum(dim=0)
