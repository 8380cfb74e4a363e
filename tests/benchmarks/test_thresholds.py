"""``auto`` is held to the records of ``bench_auto``; and how these are read."""

import pytest
import torch

pytest.importorskip("tabulate", reason="tabulate is not installed")

from benchmarks import records, thresholds

RECORDS = thresholds.cpu_records()


@pytest.mark.skipif(not RECORDS, reason="no record of benchmarks/bench_auto.py is committed yet")
@pytest.mark.parametrize("results", RECORDS, ids=lambda results: results.folder.name)
def test_auto_is_not_slower_than_torch_in_any_record(results):
    assert not list(thresholds.losses(results))


def row(length, taken, *, sdpa, cpu, ours):
    info = {
        "case": "auto",
        "dtype": "float32",
        "shape": {"rows": [length]},
        "baseline": "sdpa",
        "taken": taken,
        "ms": {name: {"quick": ms} for name, ms in (("sdpa", sdpa), ("cpu", cpu), ("ours", ours))},
        "times_faster": {"sdpa": {"quick": sdpa / ours}, "cpu": {"quick": cpu / ours}},
    }
    return records.Row(f"{length} rows", [info])


@pytest.fixture
def results(monkeypatch, tmp_path):
    """Records of these rows, on a machine where kernels are taken from 64 rows on."""
    monkeypatch.setitem(thresholds.CPU_MIN_SIZE, "avx2", {thresholds.OP: {torch.float32: 64}})

    def of(*rows):
        machine = {"instruction_set": "avx2"}
        return records.Results(tmp_path, machine, [], "2026", {}, list(rows))

    return of


def test_kernels_win_from_where_they_win_at_every_length(results):
    times = {16: 0.5, 32: 1.1, 48: 0.9, 64: 1.0, 128: 2.0}
    found = results(
        *(row(n, "sdpa", sdpa=ratio, cpu=1.0, ours=ratio) for n, ratio in times.items())
    )
    assert list(thresholds.thresholds([found])) == [("avx2", "float32", 64, 64)]
    assert thresholds.recorded(found.rows[:1]) is None


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (row(16, "sdpa", sdpa=0.91, cpu=9, ours=1), None),
        (row(16, "sdpa", sdpa=0.89, cpu=9, ours=1), "0.89 times as fast as torch, by sdpa"),
        (row(48, "sdpa", sdpa=0.96, cpu=9, ours=1), "0.96 times as fast as torch, by sdpa"),
        (row(64, "cpu", sdpa=0.98, cpu=9, ours=1), None),
        (row(64, "sdpa", sdpa=1.2, cpu=1, ours=9), None),
        (row(64, "sdpa", sdpa=0.8, cpu=1, ours=0.8), "0.80 times as fast as torch, by cpu"),
        (row(48, "cpu", sdpa=2, cpu=1, ours=1), "auto left it to cpu then, and to sdpa now"),
    ],
)
def test_what_auto_takes_now_is_compared_with_what_was_timed(results, case, said):
    expected = [] if said is None else [f"{case.name}: {said}"]
    assert list(thresholds.losses(results(case))) == expected
