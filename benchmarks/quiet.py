"""What a call takes while the machine is left alone, and how sure a ratio of two such times is.

Neighbours on the host take caches and memory. That only ever slows a call down, and not all
variants alike: torch's attention, which moves more, suffers more than ours, so that the median over
the rounds flatters us on a busy host. What is compared is therefore the mean of each variant's
quickest fifth of the rounds, from all passes together.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import exp, fsum, log
from statistics import fmean

QUICKEST = 0.2  # of the rounds
GROUPS = 8

Seconds = dict[str, list[float]]  # of each variant, round by round


def quiet_time(times: Sequence[float]) -> float:
    """The mean of the quickest fifth of at least one time."""
    return fmean(sorted(times)[: max(1, round(QUICKEST * len(times)))])


def quiet_ratio(passes: Sequence[Seconds], base: str, name: str) -> float:
    """Quiet time of one variant by that of another, from all passes together."""
    of_base, of_name = (
        quiet_time([time for seconds in passes for time in seconds[variant]])
        for variant in (base, name)
    )
    return of_base / of_name


def standard_error(passes: Sequence[Seconds], base: str, name: str) -> float | None:
    """Relative standard error of the quiet ratio; one pass alone does not tell.

    By the jackknife that leaves out groups of consecutive passes (M. H. Quenouille, Biometrika 43,
    1956): what disturbs the machine for longer than a pass counts as what it is, one disturbance.
    """
    count = min(GROUPS, len(passes))
    if count < 2:
        return None
    bounds = [round(index * len(passes) / count) for index in range(count + 1)]
    without = [
        log(quiet_ratio([*passes[:first], *passes[last:]], base, name))
        for first, last in pairwise(bounds)
    ]
    middle = fmean(without)
    spread = fsum((value - middle) ** 2 for value in without)
    return exp(((count - 1) / count * spread) ** 0.5) - 1
