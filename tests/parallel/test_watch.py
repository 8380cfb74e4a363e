"""Who waits for whom, and how a group ends when one of it fails."""

import os
import signal
import threading
import time

import pytest
import torch.distributed as dist
from ranks import RankError, run

from mbt_fast.parallel import watch
from mbt_fast.parallel.ranks import Ranks, start

STILL = 1.0  # seconds at a place, after which a rank asks who is behind


def slow():
    """Rank 1 is late for the second place."""
    watch.PATIENCE = STILL
    with start("cpu") as ranks:
        ranks.at("step 1, forward")
        ranks.wait()
        if ranks.rank == 1:
            time.sleep(6 * STILL)
        ranks.at("step 2, forward")
        ranks.wait()


def test_who_waits_says_for_whom_once(capsys):
    run(3, slow)
    said = "step 2, forward: waiting for rank 1 (at step 1, forward)\n"
    assert capsys.readouterr().err == said


def raise_error():
    raise ValueError("wrong on purpose")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fail(how):
    """Rank 1 does at step 3, and the others wait for it."""
    with start("cpu") as ranks:
        ranks.wait()
        ranks.at("step 3, forward", lambda: "clip-7, clip-8")
        if ranks.rank == 1:
            how()
        ranks.wait()


def test_an_error_is_told_once_with_the_clips(capsys):
    with pytest.raises(RankError, match="ValueError: wrong on purpose"):
        run(3, fail, raise_error)
    said = capsys.readouterr().err
    assert said == "rank 1 failed at step 3, forward, with the clips clip-7, clip-8\n"


@pytest.mark.parametrize(
    ("how", "reason"),
    [(raise_error, "rank 1 failed at step 3, forward"), (kill, "rank 1 is gone")],
)
def test_the_others_end_with_one_line(how, reason):
    with pytest.raises(RankError) as raised:
        run(3, fail, how)
    for rank in (0, 2):
        assert f"RunError: rank {rank} ends at step 3, forward: {reason}" in str(raised.value)


def hang():
    with start("cpu") as ranks:
        ranks.wait()
        if ranks.rank == 1:
            raise ValueError("wrong on purpose")
        threading.Event().wait()  # as in a collective that nothing interrupts


def test_a_rank_that_hangs_is_ended_when_another_fails(capsys):
    begin = time.monotonic()
    with pytest.raises(RankError, match="rank 0: died"):
        run(2, hang, seconds=60)
    assert time.monotonic() - begin < 50
    assert "rank 0 ends at the start: rank 1 failed at the start\n" in capsys.readouterr().err


def test_a_process_that_is_alone_says_all_by_itself():
    ranks = Ranks.alone()
    assert ranks.main
    assert ranks.highest([1, 2.5]) == [1, 2.5]
    assert ranks.exchange("x") == ranks.gather("x") == ["x"]
    assert ranks.share("x") == "x"
    assert not dist.is_initialized()
