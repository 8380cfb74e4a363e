"""What of a sweep fits into its time: decided by arithmetic, once one call has been measured.

A model's time is taken to be in proportion to its FLOPs, and these are linear in the fusion layer.
So where the time is short, fewer layers are measured rather than fewer rounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil

WARM_UP = 1.2  # calls that the first call of a model counts for: it gets its memory, and is traced
ROUNDS = 3  # the fewest that tell a difference from noise
MAX_ROUNDS = 100


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Args:
        names: Of the models, in the order in which they begin; the first has been measured once.
        rounds: Of each.
        seconds: That this is expected to take, from the start of the sweep.
        count_of_all: How many models the whole sweep has.
        seconds_of_all: That the whole sweep would take with the fewest rounds.
    """

    names: tuple[str, ...]
    rounds: int
    seconds: float
    count_of_all: int
    seconds_of_all: float

    def sentence(self) -> str:
        """What is measured, and how long all would take if that is not all."""
        rounds = f"{self.rounds} round{'s' * (self.rounds > 1)}"
        said = f"{len(self.names)} of {self.count_of_all} models in {rounds}, "
        if len(self.names) < self.count_of_all:
            said += f"all of them with --seconds {ceil(self.seconds_of_all)}; "
        return said


def by_importance(layers: Sequence[int], own: int) -> list[int]:
    """Fusion layers in the order in which they are given up last to first.

    The model's own comes first, or the nearest to it; then the earliest and the latest, which show
    the whole range; then those between.
    """
    nearest = min(layers, key=lambda layer: abs(layer - own))
    return list(dict.fromkeys((nearest, min(layers), max(layers), *sorted(layers))))


def choose(
    groups: Sequence[Sequence[str]],
    costs: Mapping[str, float],
    *,
    of_first: float,
    passed: float,
    seconds: float,
) -> Plan:
    """As many groups as fit, whole ones; of the first group as many models as fit, if not all do.

    Where one model alone would fit, two or more are measured in fewer rounds: a comparison that is
    marked as uncertain says more than none.

    Args:
        groups: Names of the models of one fusion layer each, the most important layer first. The
            first model of all has been warmed up and timed once.
        costs: Of each model, in any unit.
        of_first: Seconds of a call of the first model.
        passed: Seconds since the start of the sweep.
        seconds: For all of it.
    """
    first = groups[0][0]
    expected = {name: of_first * cost / costs[first] for name, cost in costs.items()}

    def total(names: Sequence[str], rounds: int) -> float:
        calls = (WARM_UP + rounds) * sum(expected[name] for name in names)
        return passed + calls - (WARM_UP + 1) * expected[first]

    whole = list(accumulate(map(list, groups)))
    singles = [list(groups[0][:count]) for count in range(1, len(groups[0]))]
    names = [first]
    for rounds in range(ROUNDS, 0, -1):
        fitting = [found for found in singles + whole if total(found, rounds) <= seconds]
        names = max(fitting, key=len, default=[first])
        if len(names) > 1:
            break
    one_round = sum(expected[name] for name in names)
    more = int(max(0.0, seconds - total(names, 1)) / one_round)
    rounds = min(1 + more, MAX_ROUNDS)
    return Plan(
        names=tuple(names),
        rounds=rounds,
        seconds=total(names, rounds),
        count_of_all=len(costs),
        seconds_of_all=total(whole[-1], ROUNDS),
    )
