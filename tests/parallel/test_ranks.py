"""The harness of the tests beside it: it must not hide what happens on a rank."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, run

from mbt_fast import parallel


def summed(offset):
    value = torch.tensor([float(dist.get_rank() + offset)])
    dist.all_reduce(value)
    return value, torch.get_num_threads()


def test_results_come_from_all_ranks():
    for value, threads in run(3, summed, 10):
        assert value.item() == 33
        assert threads == 1


def fail_on(rank):
    if dist.get_rank() == rank:
        raise ValueError("wrong on purpose")
    dist.barrier()


def test_the_first_error_is_raised_with_its_traceback():
    with pytest.raises(RankError, match=r"rank 1: (.|\n)*in fail_on(.|\n)*wrong on purpose"):
        run(2, fail_on, 1)


def die():
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def test_a_rank_that_dies_ends_the_others():
    with pytest.raises(RankError, match="rank 1: died"):
        run(2, die)


def test_time_is_limited():
    with pytest.raises(RankError, match=r"ended in time|died"):
        run(1, time.sleep, 60, seconds=2)


def test_a_build_without_ranks_is_named(monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(ImportError, match=r"tensor_parallel needs torch\.distributed, which"):
        parallel.__getattr__("tensor_parallel")
