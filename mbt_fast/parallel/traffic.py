"""Bytes that one training step sends, in closed form, for each way to spread a model over ranks.

Counted for one group of ranks that has the whole batch between them. The sums are those of this
library's own ways, and the least that the scheme needs for those that it does not have (ring
attention, Ulysses). ``tests/parallel/test_traffic.py`` counts the collectives of the former.

Example:
    >>> from mbt_fast import MBTConfig
    >>> ways = traffic(MBTConfig(), ranks=2, clips=64)
    >>> round(sum(c.sent(2) for c in ways["modality"]) / 1e6, 1)
    8.0
"""

from collections.abc import Iterable
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
        calls: How many there are.
    """

    kind: str
    what: str
    size: int
    calls: int = 1

    def sent(self, ranks: int) -> float:
        """Bytes that each rank sends."""
        if self.kind == "send":
            return float(self.calls * self.size)
        return self.calls * self.size * OVER_RANKS[self.kind] * (ranks - 1) / ranks


def traffic(
    config: MBTConfig, ranks: int, clips: int, width: int = 2
) -> dict[str, list[Collective]]:
    """The collectives of a step, by way.

    Args:
        config: The model; with bottlenecks, and as many modalities as ranks for ``"modality"``,
            which is left out otherwise.
        ranks: Of the group.
        clips: Of the group, in one step without micro-batches.
        width: Bytes of an activation, and of a weight that FSDP2 gathers.
    """
    with torch.device("meta"):
        model = MBT(config)
    ways = {
        "DDP": [_all_gradients(model)],
        "FSDP2": _sharded(model, ranks, width),
        "tensor": _tensor(config, clips, width),
        "ring attention": [*_ring(config, ranks, clips, width), _all_gradients(model)],
        "Ulysses": [*_ulysses(config, ranks, clips, width), _all_gradients(model)],
    }
    if len(config.modalities) == ranks:
        ways["modality"] = _modality(config, model, clips)
    return ways


def rows_of(config: MBTConfig) -> Iterable[int]:
    """Rows of every stream in every layer, own tokens and slots: one number for each block."""
    for layer in range(config.num_layers):
        slots = config.n_slots if layer >= config.fusion_layer else 0
        yield from (config.n_tokens(modality) + slots for modality in config.modalities)


def _all_gradients(model: MBT) -> Collective:
    numbers = sum(p.numel() for p in model.parameters())
    return Collective("all_reduce", "gradients", WIDE * numbers)


def _sharded(model: MBT, ranks: int, width: int) -> list[Collective]:
    """A unit for each fusion layer, and one for the rest, which is gathered once."""
    layers = [sum(_padded(p.shape, ranks) for p in layer.parameters()) for layer in model.layers]
    rest = sum(_padded(p.shape, ranks) for p in model.parameters()) - sum(layers)
    units = [*layers, rest]
    return [
        *(Collective("all_gather", "weights", width * unit) for unit in units),
        *(Collective("all_gather", "weights, again", width * unit) for unit in layers),
        *(Collective("reduce_scatter", "gradients", WIDE * unit) for unit in units),
    ]


def _padded(shape: torch.Size, ranks: int) -> int:
    """Numbers of a parameter whose first dimension is cut into equal parts."""
    return ceil(shape[0] / ranks) * ranks * prod(shape[1:])


def _modality(config: MBTConfig, model: MBT, clips: int) -> list[Collective]:
    """The official loss, whose ranks exchange slots, losses, and the gradients that all share."""
    shared = [*model.norm.parameters(), *model.head.parameters()]
    if model.bottleneck_tokens is not None:
        shared.append(model.bottleneck_tokens)
    numbers = sum(p.numel() for p in shared) + len(shared)  # and who has a gradient of each
    found = [
        Collective("all_reduce", "losses", 2 * WIDE * clips),  # and presence
        Collective("all_reduce", "gradients of what all share", WIDE * numbers),
    ]
    exchanges = max(0, config.num_layers - config.fusion_layer - 1)  # nobody reads the last slots
    if config.n_slots and exchanges:
        size = WIDE * clips * (config.n_slots * config.hidden_size + 1)  # and presence
        found.append(Collective("all_reduce", "slots", size, 2 * exchanges))
    return found


def _tensor(config: MBTConfig, clips: int, width: int) -> list[Collective]:
    """After attention and MLP in the forward, before them in the backward."""
    row = width * clips * config.hidden_size
    return [Collective("all_reduce", "streams", rows * row, 4) for rows in rows_of(config)]


def _ring(config: MBTConfig, ranks: int, clips: int, width: int) -> list[Collective]:
    """Keys and values go round in the forward; in the backward again, and their gradients."""
    own = 2 * width * clips * config.hidden_size * sum(rows_of(config)) // ranks
    return [Collective("send", "keys and values", own, 3 * (ranks - 1))]


def _ulysses(config: MBTConfig, ranks: int, clips: int, width: int) -> list[Collective]:
    """Query, key, value and result change from rows to heads or back, and so do gradients."""
    own = width * clips * config.hidden_size * sum(rows_of(config)) // ranks
    return [Collective("all_to_all", "queries, keys, values, results", own, 8)]
