"""Passes over the cases of an entry: which cases they visit, and until when."""

import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.case import Case, Variant
from benchmarks.measure import Timing
from benchmarks.passes import FOR_ALL, OUT_OF_TIME, Passes, in_turns
from benchmarks.quiet import ROUNDS_TO_BE_SURE
from benchmarks.record import Ceilings
from benchmarks.sample import Sample

CPU = torch.device("cpu")
X = torch.ones(100, 100)
CEILINGS = Ceilings(matmul_gflops={})


def case(variants, **values):
    values = {"name": "x", "mode": "forward", "shape": {}, "dtype": torch.float32, **values}
    return Case(variants=lambda: variants, **{"baseline": "slow", "threads": 1, **values})


def measure_all(cases, timing, **options):
    passes = Passes("e", cases, timing, **options)
    while passes.one_more():
        pass
    return passes.records(CEILINGS)


def test_a_spent_budget_is_said():
    cases = [case({"slow": Variant(run=lambda: time.sleep(0.05))}, name=name) for name in "abc"]
    timing = Timing(device=CPU, seconds=0.01)
    first, *others = measure_all(cases, timing)
    assert first.ms is not None
    assert [record.error for record in others] == [OUT_OF_TIME] * 2


def test_cases_that_differ_in_threads_may_all_be_out_of_time():
    cases = [case({"slow": Variant(run=lambda: X + X)}, threads=n) for n in (1, 2, 3)]
    timing = Timing(device=CPU, seconds=0.0)
    assert [r.threads for r in measure_all(cases, timing)] == [1, 2, 3]


def passes(cases, **values):
    """Records, and the names of the cases in the order in which they were visited."""
    visits = []
    timing = Timing(device=CPU, min_rounds=2, max_rounds=2, **{"seconds": 60, **values})
    visited = lambda sample: visits.append(sample.case.name)  # noqa: E731
    return measure_all(cases, timing, on_visit=visited), visits


def test_every_pass_visits_all_cases_and_builds_them_anew():
    built = {"a": [], "b": []}

    def variants(name):
        built[name].append(1)
        return {"slow": Variant(run=lambda: time.sleep(0.005))}

    cases = [replace(case({}, name=n), variants=partial(variants, n)) for n in "ab"]
    records, visits = passes(cases, passes=3)
    assert visits == list("ababab")
    assert built == {"a": [1, 1, 1], "b": [1, 1, 1]}
    assert [(r.passes, r.rounds, r.uncertainty) for r in records] == [(3, 6, None)] * 2


def visits_given(cases, timing, fast=lambda name, index: 1.0):
    """Names of timed cases, and the seconds that each visit is given and takes, in order."""
    given = []

    def visit(sample, timing):
        passes = []
        if sample.case.timed:
            given.append((sample.case.name, timing.seconds))
            time.sleep(max(0, timing.seconds))
            ours = fast(sample.case.name, len(sample.passes))
            times = {"slow": [1.0] * ROUNDS_TO_BE_SURE, "fast": [ours] * ROUNDS_TO_BE_SURE}
            passes = [*sample.passes, times]
        records = {name: replace(sample.blank, variant=name) for name in ("slow", "fast")}
        sample.state = records, 1, passes

    of_entry = Passes("e", cases, timing, begin=lambda: nullcontext(visit))
    while of_entry.one_more():
        pass
    return given, of_entry


def test_passes_share_half_of_the_time_evenly():
    timing = Timing(device=CPU, seconds=3.2, passes=4)
    given, of_entry = visits_given([case({}, name=name) for name in "ab"], timing)
    assert [name for name, _ in given] == list("abababab")
    assert [seconds for _, seconds in given] == pytest.approx([0.2] * 8, rel=0.2)
    assert of_entry.spent == pytest.approx(FOR_ALL, rel=0.2)


def test_one_pass_may_take_all_the_time():
    ((_, seconds),), _ = visits_given([case({})], Timing(device=CPU, seconds=0.5))
    assert seconds == pytest.approx(0.5, rel=0.2)


def test_the_other_half_is_for_cases_that_stay_unsure():
    cases = [case({}, name=name) for name in ("sure", "unsure", "settles")]
    disturbed = {
        "unsure": lambda index: 1 + index % 5,
        "settles": lambda index: 1 + (index == 0),
    }
    timing = Timing(device=CPU, seconds=2.4, passes=2)
    given, of_entry = visits_given(
        cases, timing, lambda name, index: disturbed.get(name, lambda _: 1.0)(index)
    )
    visits = Counter(name for name, _ in given)
    assert visits["sure"] == 2
    assert visits["settles"] == 3  # two of them agree
    assert visits["unsure"] > 3
    assert of_entry.spent == pytest.approx(1, rel=0.2)


def test_counting_leaves_its_time_to_the_others():
    counted = [case({}, timed=False) for _ in range(10)]
    given, _ = visits_given([*counted, case({})], Timing(device=CPU, seconds=1.6, passes=4))
    assert [seconds for _, seconds in given] == pytest.approx([0.2] * 4, rel=0.2)


def test_a_pass_is_of_the_entry_that_has_spent_the_least_of_its_time():
    visits = []

    def entry(name, seconds, passes):
        return Passes(
            name,
            [case({"slow": Variant(run=lambda: time.sleep(0.1))})],
            Timing(device=CPU, seconds=seconds, min_rounds=1, max_rounds=1, passes=passes),
            on_visit=lambda sample: visits.append(sample.blank.entry),
        )

    both = [entry("a", seconds=10, passes=2), entry("b", seconds=30, passes=6)]
    assert [visits[-1] for _ in in_turns(both)] == visits
    assert sorted(visits) == list("aabbbbbb")
    assert visits[:2] == ["a", "b"]


def record_of(*ratios):
    """Of a sample whose passes have these ratios, in two rounds each."""
    sample = Sample.of("e", case({}), CPU)
    sample.records = {name: replace(sample.blank, variant=name) for name in ("slow", "fast")}
    sample.passes += [{"slow": [ratio] * 2, "fast": [1.0] * 2} for ratio in ratios]
    _, fast = sample.finished("perf_counter", CEILINGS)
    return fast


def test_a_record_has_the_median_over_rounds_and_the_ratio_of_quiet_times():
    fast = record_of(3, 2, 5, 2, 4)
    assert (fast.passes, fast.rounds) == (5, 10)
    assert fast.ratio == (3, 2, 4.2, 2)
    assert (fast.ms.median, fast.ms.quiet) == (1000, 1000)
    assert fast.uncertainty == 0


def test_what_passes_disagree_in_is_uncertainty():
    assert record_of(2, 3, 4, 5).uncertainty > 0.2


def test_no_pass_begins_after_the_time_is_over():
    whole = case({"slow": Variant(run=lambda: time.sleep(0.1))})
    (record,), visits = passes([whole], passes=3, seconds=0.3)
    assert visits == ["x"]  # warm-up, counting and two rounds
    assert (record.passes, record.rounds, record.uncertainty) == (1, 2, None)


def test_counted_figures_come_from_the_first_pass_alone():
    kept = []

    def variants():
        kept.append(torch.ones(10, requires_grad=True))
        return {"slow": Variant(run=lambda: X + X, saves=lambda: kept[-1].exp())}

    (record,), _ = passes([replace(case({}), variants=variants)], passes=2)
    assert (record.saved_memory, record.passes, len(kept)) == (40, 2, 2)


def test_a_case_that_fails_later_has_its_reason_and_no_times():
    built = iter([{"slow": Variant(run=X.sum), "fast": Variant(run=X.sum)}])  # for one pass
    (slow, fast), visits = passes(
        [replace(case({}, name="broken"), variants=built.__next__)], passes=3
    )
    assert visits == ["broken", "broken"]
    assert (slow.error, slow.ms) == (fast.error, fast.ms) == ("StopIteration: ", None)
