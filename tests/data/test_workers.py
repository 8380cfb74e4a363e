"""A function for each row, in this process or in others."""

import os
import signal

import pytest

from mbt_fast.data.workers import call_for_each
from mbt_fast.errors import ClipError, InputError


def square(item):
    return item**2, os.getpid()


def fail(item):
    if item == 2:
        raise ClipError("a.mp4: broken")
    return item


def die(item):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers):
    results = list(call_for_each(square, range(20), workers))
    assert [value for value, _ in results] == [item**2 for item in range(20)]
    processes = {process for _, process in results}
    assert processes == {os.getpid()} if workers == 0 else len(processes - {os.getpid()}) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_comes_out_as_it_went_in(workers):
    results = call_for_each(fail, range(5), workers)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ClipError) as raised:
        next(results)
    assert str(raised.value) == "a.mp4: broken"


def test_a_worker_that_dies_is_one_line():
    with pytest.raises(InputError, match=r"a worker process died .* --workers 0 shows where"):
        list(call_for_each(die, range(2), 1))
