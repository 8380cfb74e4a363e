"""The runner: what it makes of a case, whatever its variants do."""

import time
from dataclasses import replace

import pytest
import torch

from benchmarks.case import Case, Variant
from benchmarks.launches import count_launches
from benchmarks.measure import Timing, measure_case
from benchmarks.record import Ceilings

CPU = torch.device("cpu")
X = torch.ones(100, 100)
CEILINGS = Ceilings(matmul_gflops={"float32": 100.0}, copy_gb_per_s=10.0, threads=1)
TIMING = Timing(device=CPU, seconds=0.5, min_rounds=2, max_rounds=4)


def case(variants, **values):
    values = {"name": "x", "mode": "forward", "shape": {}, "dtype": torch.float32, **values}
    return Case(variants=lambda: variants, **{"baseline": "slow", "threads": 1, **values})


def fail():
    raise RuntimeError("no kernel\n for this")


def test_ratios_are_of_the_baseline_and_shares_of_the_ceilings():
    variants = {
        "slow": Variant(run=lambda: time.sleep(0.06), flops=10**6),
        "fast": Variant(run=lambda: time.sleep(0.015), flops=10**6, bytes=10**4),
    }
    slow, fast = measure_case("e", case(variants), TIMING, CEILINGS)
    assert slow.ratio == (1, 1, 1, 1)
    assert 2.5 < fast.ratio.median < 4.5
    assert fast.share_of_matmul == pytest.approx(10**6 / (fast.ms.quiet / 1e3) / 1e11, rel=1e-3)
    assert fast.share_of_copy == pytest.approx(10**4 / (fast.ms.quiet / 1e3) / 1e10, rel=1e-3)
    assert 2 <= fast.rounds <= 4
    assert (fast.calls, fast.clock) == (1, "perf_counter")


def test_no_share_of_a_ceiling_of_other_threads():
    variants = {"slow": Variant(run=lambda: X + X, flops=10)}
    (record,) = measure_case("e", case(variants, threads=2), TIMING, CEILINGS)
    assert record.threads == 2
    assert record.share_of_matmul is None


def test_short_calls_are_read_together():
    variants = {"slow": Variant(run=lambda: X + X)}
    (record,) = measure_case("e", case(variants), TIMING, CEILINGS)
    assert record.calls > 10
    assert record.ms.median < 1


def test_a_variant_that_fails_has_its_reason_and_stops_no_other():
    variants = {"slow": Variant(run=lambda: X + X), "broken": Variant(run=fail)}
    slow, broken = measure_case("e", case(variants), TIMING, CEILINGS)
    assert slow.ms is not None
    assert (broken.error, broken.ms) == ("RuntimeError: no kernel for this", None)


def test_a_case_that_cannot_be_built_has_its_reason():
    whole = replace(case({}), variants=fail)
    (record,) = measure_case("e", whole, TIMING, CEILINGS)
    assert (record.variant, record.error) == ("all", "RuntimeError: no kernel for this")


def test_without_its_baseline_a_variant_has_no_ratio():
    variants = {"slow": Variant(run=fail), "fast": Variant(run=lambda: X + X)}
    _, fast = measure_case("e", case(variants), TIMING, CEILINGS)
    assert (fast.ratio, fast.baseline) == (None, None)


def test_threads_are_what_the_case_says_and_what_they_were_afterwards():
    before, seen = torch.get_num_threads(), []
    variants = {"slow": Variant(run=lambda: seen.append(torch.get_num_threads()))}
    measure_case("e", case(variants, threads=before + 1), TIMING, CEILINGS)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("seconds", "rounds"), [(0.016, 10), (0.15, 2)])
def test_warm_up_is_of_ten_rounds_or_a_quarter_of_a_second(seconds, rounds):
    calls = []

    def run():
        calls.append(1)
        time.sleep(seconds)

    (record,) = measure_case("e", case({"slow": Variant(run=run)}), TIMING, CEILINGS)
    assert record.calls == 1
    assert len(calls) - record.rounds - 4 == rounds  # before: three to count, one to time


def test_a_failure_while_timing_is_recorded():
    calls = []

    def run():
        calls.append(1)
        if len(calls) > 5:
            raise MemoryError("full")

    (record,) = measure_case("e", case({"slow": Variant(run=run)}), TIMING, CEILINGS)
    assert (record.error, record.ms) == ("MemoryError: full", None)


def test_an_interrupt_ends_the_run():
    calls = []

    def run():
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_case("e", case({"slow": Variant(run=run)}), TIMING, CEILINGS)


def test_kept_memory_and_counts_without_times():
    weight = torch.ones(10, 10, requires_grad=True)
    run = lambda: torch.ones(3, 10, requires_grad=True) @ weight  # noqa: E731
    variants = {"slow": Variant(run=run, saves=run, apart_from=(weight,))}
    (record,) = measure_case("e", case(variants, timed=False), TIMING, CEILINGS)
    assert (record.saved_memory, record.ms) == (120, None)


def test_launches_are_operators_that_write(monkeypatch):
    monkeypatch.undo()  # poisoning fresh memory takes operators

    def run():
        y = X.view(-1).reshape(50, 200).t()  # views
        y = torch.nn.functional.dropout(y, 0.5, training=False)  # the tensor itself
        fresh = torch.empty_like(X)  # not written
        return (y + 1).relu_(), y.contiguous(), fresh

    assert count_launches(run, CPU) == 3
    with torch.inference_mode():
        assert count_launches(run, CPU) == 3
