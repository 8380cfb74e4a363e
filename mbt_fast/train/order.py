"""The order of a run without state: what is drawn is a function of a seed and of its place.

So a checkpoint needs one integer, the step, and a resumed run sees the same clips whatever the
number of workers. The order is that of the whole batch: another number of ranks cuts the same
batches differently.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler


class Key(NamedTuple):
    """What the loader asks a data set for.

    Args:
        epoch: Counted from 0.
        position: In the epoch's order. Draws of an item belong to its position: the same clip drawn
            twice in an epoch has another window each time.
        entry: Its index in the manifest.
    """

    epoch: int
    position: int
    entry: int


def seed_of(seed: int, *keys: int | str) -> int:
    """A number of 63 bits for a purpose: equal arguments give an equal one, in every process.

    Args:
        seed: Of the run.
        *keys: What the numbers are for, and where: ``"window", epoch, position``.
    """
    text = repr((seed, *keys)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """A private stream of random numbers on the CPU; arguments as in ``seed_of``."""
    return torch.Generator().manual_seed(seed_of(seed, *keys))


def draw(n: int, count: int, source: torch.Generator, weights: Tensor | None = None) -> Tensor:
    """Draw entries with replacement.

    Args:
        n: Number of entries.
        count: How many to draw.
        source: Of random numbers.
        weights: float64 ``[n]``, not negative; without them all entries are equally likely.

    Returns:
        int64 ``[count]``.

    Raises:
        ValueError: No weight is positive, or one is negative or not finite.
    """
    if weights is None:
        return torch.randint(n, (count,), generator=source)
    ends = weights.double().cumsum(0)
    if not (ends.isfinite().all() and weights.min() >= 0 and ends[-1] > 0):
        raise ValueError("weights must be finite, none negative and one positive")
    last = int(weights.nonzero()[-1])  # where rounding would step past the end
    points = torch.rand(count, dtype=torch.float64, generator=source) * ends[-1]
    return torch.searchsorted(ends, points, right=True).clamp(max=last)


def epoch_order(n: int, seed: int, epoch: int, weights: Tensor | None = None) -> Tensor:
    """The entries of an epoch, in order, for all ranks together.

    Args:
        n: Number of entries.
        seed: Of the run.
        epoch: Counted from 0.
        weights: float64 ``[n]``. With weights entries are drawn with replacement; without, each
            stands exactly once.

    Returns:
        int64 ``[n]``.
    """
    source = generator(seed, "order", epoch)
    if weights is None:
        return torch.randperm(n, generator=source)
    return draw(n, n, source, weights)


@dataclass(frozen=True)
class BatchKeys(Sampler[list[Key]]):
    """The batches of steps ``start`` to ``stop``; what an epoch leaves over is not used.

    Args:
        n: Number of entries, at least ``batch_size``.
        batch_size: Of all ranks together.
        seed: Of the run.
        start: The first step.
        stop: The step after the last.
        weights: As in ``epoch_order``.
        rank: Of this process. It takes the ``rank``-th of ``world`` equal parts of each batch, so
            that virtual devices, which are parts too, stay whole.
        world: Number of processes; it divides ``batch_size``.
    """

    n: int
    batch_size: int
    seed: int
    start: int
    stop: int
    weights: Tensor | None = None
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        """Number of batches."""
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        """The keys of each batch."""
        per_epoch = self.n // self.batch_size
        epoch, order = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            if epoch != step // per_epoch:
                epoch = step // per_epoch
                order = epoch_order(self.n, self.seed, epoch, self.weights)
            share = self.batch_size // self.world
            first = step % per_epoch * self.batch_size + self.rank * share
            positions = range(first, first + share)
            yield [Key(epoch, position, int(order[position])) for position in positions]
