"""What a call takes while the machine is left alone, and how sure a ratio of two such times is.

Neighbours on the host take caches and memory. That only ever slows a call down, and not all
variants alike: torch's attention, which moves more, suffers more than ours, so that the median over
the rounds flatters us on a busy host. What is compared is therefore the mean of each variant's
quickest fifth of the rounds, from all passes together. Where a process has luck with its memory,
that counts too, for each variant in its own luckiest processes.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import fsum, log
from statistics import fmean

QUICKEST = 0.2  # of the rounds
# Below so many rounds the quickest fifth is one or two of them: leaving out passes then mostly
# changes nothing, and the standard error is too small.
ROUNDS_TO_BE_SURE = 25
GROUPS = 8

Seconds = dict[str, list[float]]  # of each variant, round by round


def quiet_time(times: Sequence[float]) -> float:
    """The mean of the quickest fifth of some times, of the one quickest if there are few.

    What does not divide by five counts in part, so that leaving out a time changes nothing else.
    """
    count = max(1.0, QUICKEST * len(times))
    quickest = sorted(times)
    whole = int(count)
    rest = (count - whole) * quickest[whole] if count > whole else 0.0
    return (fsum(quickest[:whole]) + rest) / count


def quiet_ratio(times: Seconds, base: str, name: str) -> float:
    """Quiet time of one variant by that of another."""
    return quiet_time(times[base]) / quiet_time(times[name])


def pooled(passes: Sequence[Seconds]) -> Seconds:
    """The rounds of all passes."""
    return {name: [time for one in passes for time in one[name]] for name in passes[0]}


def standard_error(passes: Sequence[Seconds], base: str, name: str) -> float | None:
    """Relative standard error of the quiet ratio; one pass alone does not tell.

    By the jackknife (J. W. Tukey, Ann. Math. Statist. 29, 1958) that leaves out passes or, if there
    are more than eight, groups of consecutive ones: a disturbance of up to an eighth of all passes
    counts as one. What lasts longer is not seen, and of eight passes or fewer none may last longer
    than one; other entries have their turns between two of them.
    """
    count = min(GROUPS, len(passes))
    if count < 2:
        return None
    bounds = [round(index * len(passes) / count) for index in range(count + 1)]
    without = [
        log(quiet_ratio(pooled([*passes[:first], *passes[last:]]), base, name))
        for first, last in pairwise(bounds)
    ]
    middle = fmean(without)
    spread = fsum((value - middle) ** 2 for value in without)
    return ((count - 1) / count * spread) ** 0.5
