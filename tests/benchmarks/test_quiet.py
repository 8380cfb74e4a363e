"""Times on a machine left alone: what disturbances move, and whether the standard error knows."""

import random
from math import sqrt
from statistics import fmean, stdev

import pytest

from benchmarks.quiet import pooled, quiet_ratio, quiet_time, standard_error


def test_the_quickest_fifth_counts():
    assert quiet_time([9.0, 1.0, 2.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 10.0]) == 1.5
    assert quiet_time([3.0, 2.0]) == 2.0
    assert quiet_time([5.0]) == 5.0


def test_what_does_not_divide_by_five_counts_in_part():
    assert quiet_time([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == pytest.approx((1 + 0.4 * 2) / 1.4)
    assert quiet_time([2.0] * 7) == pytest.approx(2.0)


def test_each_variant_has_its_own_quiet_rounds():
    """Neighbours slow down only the base in one pass, and only the other in the next."""
    passes = [{"base": [9.0] * 5, "fast": [1.0] * 5}, {"base": [2.0] * 5, "fast": [7.0] * 5}]
    assert quiet_ratio(pooled(passes), "base", "fast") == 2.0


def test_disturbed_passes_move_neither_the_ratio_nor_its_error():
    quiet, disturbed = {"base": [2.0], "fast": [1.0]}, {"base": [6.0], "fast": [1.5]}
    passes = [quiet, disturbed, quiet, disturbed, disturbed, quiet, quiet, disturbed]
    assert quiet_ratio(pooled(passes), "base", "fast") == 2.0
    assert standard_error(passes, "base", "fast") == 0


def test_one_pass_does_not_tell():
    assert standard_error([{"base": [2.0, 2.1], "fast": [1.0, 1.1]}], "base", "fast") is None


@pytest.mark.parametrize(("count", "lasting"), [(5, 1), (8, 1), (24, 1), (20, 3), (24, 3)])
def test_the_standard_error_is_that_of_repeated_runs(count, lasting):
    """Of so many passes, a disturbance slows down one or three."""

    def run(draw):
        passes = []
        while len(passes) < count:
            slower = draw.expovariate(4)
            for _ in range(lasting):
                of_base = [2 * (1 + slower + draw.expovariate(20)) for _ in range(8)]
                of_fast = [1 + draw.expovariate(20) for _ in range(8)]
                passes.append({"base": of_base, "fast": of_fast})
        return passes[:count]

    runs = [run(random.Random(seed)) for seed in range(300)]
    ratios = [quiet_ratio(pooled(passes), "base", "fast") for passes in runs]
    errors = [standard_error(passes, "base", "fast") for passes in runs]
    known = sqrt(fmean(error**2 for error in errors))
    assert known == pytest.approx(stdev(ratios) / fmean(ratios), rel=0.4)
