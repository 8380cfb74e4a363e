"""Calls at several depths of the stack."""

import ctypes
import platform
import sys
from itertools import pairwise

import pytest
import torch

from benchmarks.allocator import IS_GLIBC
from benchmarks.by_depth import milliseconds, runs
from benchmarks.depth import LEVELS, at_depths, shares

PAGE = 4096
STACK_POINTER = 40 + 15 * 8  # in a ucontext_t of x86-64: uc_mcontext.gregs[REG_RSP]


def stack_pointer():
    context = (ctypes.c_char * 1024)()
    if ctypes.CDLL(None).getcontext(context) != 0:
        raise RuntimeError("getcontext failed")
    return int.from_bytes(context[STACK_POINTER : STACK_POINTER + 8], "little")


@pytest.mark.parametrize("calls", [1, 2, 7, 8, 9, 30, 1000])
def test_all_calls_are_made_and_shared_evenly(calls):
    made = []
    at_depths(lambda: made.append(1), calls)()
    assert len(made) == sum(shares(calls)) == calls
    assert len(list(shares(calls))) == min(calls, LEVELS)
    assert max(shares(calls)) - min(shares(calls)) <= 1


@pytest.mark.skipif(
    not (IS_GLIBC and platform.machine() == "x86_64"), reason="reads glibc's x86-64 ucontext_t"
)
def test_the_depths_go_through_a_page():
    found = []
    at_depths(lambda: found.append(stack_pointer()), LEVELS)()
    steps = [above - below for above, below in pairwise(found)]
    assert all(0 < step < PAGE / 4 for step in steps)
    assert sum(steps) > 0.8 * PAGE


def test_few_calls_go_on_at_the_next_depth():
    found = []
    run = at_depths(lambda: found.append(frames()), calls=3, first=LEVELS - 2)
    for _ in range(4):
        run()
    deepest = max(found)
    assert len(set(found)) == LEVELS
    assert found.index(deepest) == 1  # the last two depths, then the first ones
    assert found[2] == min(found)
    assert found[LEVELS] == found[0]


def frames():
    """How many frames of Python are on the stack."""
    frame, count = sys._getframe(), 0
    while frame:
        frame, count = frame.f_back, count + 1
    return count


def test_a_call_is_timed_at_every_depth():
    found = []
    assert len(milliseconds(lambda: found.append(frames()), seconds=0.0)) == LEVELS
    assert len(set(found[LEVELS:])) == LEVELS  # after the warm-up


def test_torch_and_ours_return_the_same_where_they_are_compared_by_depth():
    torch.testing.assert_close(*(run() for run in runs((1, 5, 48)).values()))
