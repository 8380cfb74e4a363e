"""Passes in processes of their own, on cases that this module describes."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.apart import new_process
from benchmarks.case import Case, Scope, Variant
from benchmarks.measure import Timing
from benchmarks.passes import Passes
from benchmarks.record import Ceilings

SCOPE = Scope(torch.device("cpu"))
TIMING = Timing(device=SCOPE.device, seconds=120, max_rounds=2, passes=2)


def cases(scope):
    """One after another; the variants tell who built them."""
    values = {"mode": "forward", "shape": {}, "dtype": torch.float32, "threads": 1}
    for name in ("first", "dies", "fails", "last"):
        yield Case(name=name, variants=partial(variants, name), **values)


def variants(name):
    with open(os.environ["VISITS"], "a") as file:
        print(name, os.getpid(), torch.get_num_threads(), file=file)
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "fails":
        raise ValueError("no such kernel")
    return {"ours": Variant(run=partial(torch.add, torch.ones(3), 1), flops=3)}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Records by case, and the process of each visit, in order."""
    path = tmp_path_factory.mktemp("visits") / "visits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISITS", str(path))
        begin_pass = partial(new_process, __name__, SCOPE)
        ceilings = Ceilings(matmul_gflops={})
        passes = Passes("e", list(cases(SCOPE)), TIMING, begin_pass)
        while passes.one_more():
            pass
        records = passes.records(ceilings)
    visits = [line.split() for line in Path(path).read_text().splitlines()]
    return {record.case: record for record in records}, visits


def test_each_pass_has_a_process_and_a_dead_one_is_replaced(outcome):
    _, visits = outcome
    assert [name for name, *_ in visits] == ["first", "dies", "fails", "last", "first", "last"]
    first, dies, fails, last, again, last_again = (process for _, process, _ in visits)
    assert first == dies
    assert fails == last
    assert again == last_again
    assert len({first, fails, again, str(os.getpid())}) == 4


def test_records_come_back_with_the_rounds_of_all_passes(outcome):
    records, _ = outcome
    for name in ("first", "last"):
        record = records[name]
        assert (record.passes, record.rounds, record.flops, record.error) == (2, 4, 3, None)
        assert record.calls > 1  # found in the first pass, kept in the second


def test_a_case_whose_process_dies_says_so(outcome):
    records, _ = outcome
    assert records["dies"].error == "its process died, maybe of a lack of memory"
    assert records["dies"].ms is None


def test_a_case_that_fails_has_its_reason(outcome):
    records, _ = outcome
    assert records["fails"].error == "ValueError: no such kernel"
