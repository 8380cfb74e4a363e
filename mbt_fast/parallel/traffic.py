"""Bytes that one training step sends, in closed form, for each way to spread a model over ranks.

Counted for one group of ranks that has the whole batch between them, on the rank that sends most.
The sums are those of this library's own ways, and the least that the scheme needs for those that it
does not have (ring attention, Ulysses). The tests count the collectives of the former.

Example:
    >>> from mbt_fast import MBTConfig
    >>> ways = traffic(MBTConfig(), ranks=2, clips=64)
    >>> {way: round(sum(c.sent for c in ways[way]) / 1e6) for way in ("DDP", "modality")}
    {'DDP': 693, 'modality': 6}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, prod

import torch

from mbt_fast.config import MBTConfig
from mbt_fast.models import MBT

WIDE = 4  # bytes of a gradient, and of a sum over modalities
OVER_RANKS = {  # what a rank sends of the whole tensor, in units of (n - 1) / n
    "all_reduce": 2,  # as a ring: each part is summed around it, then sent around it
    "all_gather": 1,
    "reduce_scatter": 1,
    "all_to_all": 1,
}


@dataclass(frozen=True)
class Collective:
    """Equal collectives of a step, on one rank.

    Args:
        kind: A key of ``OVER_RANKS``, or ``"send"`` from rank to rank.
        what: Is sent.
        size: Bytes of the whole tensor; of ``"all_to_all"`` and ``"send"``, of the rank's own.
        ranks: That take part.
        calls: How many there are.
    """

    kind: str
    what: str
    size: int
    ranks: int
    calls: int = 1

    @property
    def sent(self) -> float:
        """Bytes that each rank sends."""
        total = self.calls * self.size
        if self.kind == "send":
            return float(total)
        return total * OVER_RANKS[self.kind] * (self.ranks - 1) / self.ranks


def traffic(
    config: MBTConfig,
    ranks: int,
    clips: int,
    *,
    width: int = 2,
    plan: Mapping[str, int] | None = None,
) -> dict[str, list[Collective]]:
    """The collectives of a step, by way.

    Args:
        config: A model with bottlenecks.
        ranks: Of the group.
        clips: Of the group, in one step without micro-batches.
        width: Bytes of an activation, and of a weight that FSDP2 gathers.
        plan: Ranks per modality; one each by default. ``"modality"`` is left out where it needs
            another number of ranks.
    """
    with torch.device("meta"):
        model = MBT(config)
    gradients = _sum_of("gradients", [p.numel() for p in model.parameters()], ranks)
    plan = dict.fromkeys(config.modalities, 1) if plan is None else plan
    ways = {
        "DDP": [gradients],
        "FSDP2": _sharded(model, ranks, width),
        "tensor": _tensor(config, ranks, clips, width),
        "ring attention": [_ring(config, ranks, clips, width), gradients],
        "Ulysses": [_ulysses(config, ranks, clips, width), gradients],
    }
    if sum(plan.values()) == ranks:
        ways["modality"] = _modality(model, plan, clips)
    return ways


def rows_of(config: MBTConfig) -> Iterable[int]:
    """Rows of every stream in every layer, own tokens and slots: one number for each block."""
    for layer in range(config.num_layers):
        slots = config.n_slots if layer >= config.fusion_layer else 0
        yield from (config.n_tokens(modality) + slots for modality in config.modalities)


def exchanges_of(config: MBTConfig) -> int:
    """After how many layers modality parallelism exchanges slots: nobody reads the last ones."""
    return max(0, config.num_layers - config.fusion_layer - 1)


def exchanged_numbers(config: MBTConfig) -> int:
    """What an exchange sums for each clip: its slots, and whether it has the modality."""
    return config.n_slots * config.hidden_size + 1


def _sum_of(what: str, numbers: Iterable[int], ranks: int) -> Collective:
    return Collective("all_reduce", what, WIDE * sum(numbers), ranks)


def _sharded(model: MBT, ranks: int, width: int) -> list[Collective]:
    """A unit for each fusion layer, and one for the rest, which is gathered once."""
    layers = [sum(_padded(p.shape, ranks) for p in layer.parameters()) for layer in model.layers]
    rest = sum(_padded(p.shape, ranks) for p in model.parameters()) - sum(layers)
    gathered = {"weights": [*layers, rest], "weights, again": layers}
    return [
        *(
            Collective("all_gather", what, width * unit, ranks)
            for what, units in gathered.items()
            for unit in units
        ),
        *(Collective("reduce_scatter", "gradients", WIDE * n, ranks) for n in [*layers, rest]),
    ]


def _padded(shape: torch.Size, ranks: int) -> int:
    """Numbers of a parameter whose first dimension is cut into equal parts."""
    return ceil(shape[0] / ranks) * ranks * prod(shape[1:])


def _modality(model: MBT, plan: Mapping[str, int], clips: int) -> list[Collective]:
    """The official loss, whose ranks exchange slots, losses, and gradients that several have."""
    config, ranks = model.config, sum(plan.values())
    own = {
        m: [p.numel() for name, p in model.named_parameters() if m in name.split(".")]
        for m in config.modalities
    }
    shared = [p.numel() for n, p in model.named_parameters() if not {*n.split(".")} & {*plan}]
    most = max(config.modalities, key=lambda m: sum(own[m]) * (1 - 1 / plan[m]))
    found = [
        _sum_of("losses", [2 * clips], ranks),  # and presence
        _sum_of("gradients of what all share", [*shared, len(shared)], ranks),  # and who has them
    ]
    if plan[most] > 1:
        numbers = [*own[most], len(own[most])]
        found.append(_sum_of("gradients of the modality", numbers, plan[most]))
    exchanges = exchanges_of(config)
    if config.n_slots and exchanges:
        size = WIDE * clips * exchanged_numbers(config)
        found.append(Collective("all_reduce", "slots", size, ranks, 2 * exchanges))
    return found


def _tensor(config: MBTConfig, ranks: int, clips: int, width: int) -> list[Collective]:
    """After attention and MLP in the forward, before them in the backward.

    There it is the gradient of what the norm gives, which autocast leaves in float32.
    """
    passes = {"streams": width, "streams, their gradients": WIDE}
    return [
        Collective("all_reduce", what, rows * wide * clips * config.hidden_size, ranks, 2)
        for rows in rows_of(config)
        for what, wide in passes.items()
    ]


def _ring(config: MBTConfig, ranks: int, clips: int, width: int) -> Collective:
    """Keys and values go round in the forward; in the backward again, and their gradients."""
    own = 2 * width * clips * config.hidden_size * sum(rows_of(config)) // ranks
    return Collective("send", "keys and values", own, ranks, 3 * (ranks - 1))


def _ulysses(config: MBTConfig, ranks: int, clips: int, width: int) -> Collective:
    """Query, key, value and result change from rows to heads or back, and so do gradients."""
    own = width * clips * config.hidden_size * sum(rows_of(config)) // ranks
    return Collective("all_to_all", "queries, keys, values, results", own, ranks, 8)
