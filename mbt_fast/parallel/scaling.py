"""How a step scales with the number of ranks, predicted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mbt_fast.parallel.machine import Hosts
from mbt_fast.parallel.prediction import Predictor, Step

WAYS = ("ddp", "fsdp", "modality")
MOST = 1024
ENOUGH = 0.5  # of the speed of so many single ranks; below it more ranks no longer pay


@dataclass(frozen=True)
class Row:
    """Steps of one world.

    Args:
        world: Its ranks.
        steps: By way; ``None`` where it cannot be.
        efficiency: Speed over that of so many single ranks, by way.
    """

    world: Hosts
    steps: dict[str, Step | None]
    efficiency: dict[str, float | None]


def worlds(ranks: int, most: int = MOST) -> Iterator[Hosts]:
    """1, 2, 4, ... ranks of one host, then 2, 4, ... hosts, up to ``most`` ranks."""
    inside = [2**power for power in range(ranks.bit_length()) if 2**power < ranks]
    yield from (Hosts(1, n) for n in (*inside, ranks))
    hosts = 2
    while hosts * ranks <= most:
        yield Hosts(hosts, ranks)
        hosts *= 2


def curve(predictor: Predictor, sizes: Sequence[Hosts], *, clips: int | None = None) -> list[Row]:
    """Predict each world.

    Args:
        predictor: Of the model and the recipe.
        sizes: The worlds.
        clips: Of each rank, so that the batch grows with the world; ``None`` for the batch of the
            recipe, whatever the world.
    """
    return [row(predictor, world, clips) for world in sizes]


def row(predictor: Predictor, world: Hosts, clips: int | None = None) -> Row:
    """Predict one world; arguments as in ``curve``."""
    batch_size = clips * world.size if clips else predictor.settings.batch_size
    alone = predictor.alone(clips or batch_size)
    steps = {way: getattr(predictor, way)(world, batch_size) for way in WAYS}
    efficiency = {
        way: step and step.rate / (world.size * alone.rate) for way, step in steps.items()
    }
    return Row(world, steps, efficiency)


def end_of_scaling(rows: Sequence[Row], way: str = "ddp") -> tuple[Row | None, Row | None]:
    """The last world that is efficient enough, and the first that is not, if there are any.

    Worlds that the batch does not divide over are passed over.
    """
    last = None
    for each in rows:
        efficiency = each.efficiency[way]
        if efficiency is None:
            continue
        if efficiency < ENOUGH:
            return last, each
        last = each
    return last, None
