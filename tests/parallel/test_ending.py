"""What the end of a run leaves: what was done is saved, and the process is as it was."""

import signal
import time

import pytest
import torch.distributed as dist
from ranks import run

from mbt_fast.checkpoint.runs import find_checkpoint
from mbt_fast.errors import RunError
from mbt_fast.parallel import watch
from mbt_fast.parallel.ranks import start
from mbt_fast.train import TrainConfig, checkpoints, report, train


def handler_after_a_failure():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises((ValueError, RunError)), start("cpu"):
        raise ValueError("wrong on purpose")
    return signal.getsignal(signal.SIGTERM) == before


def test_a_process_that_goes_on_after_a_failure_can_be_ended():
    assert run(2, handler_after_a_failure) == [True, True]


def saved_slowly(recipe, out):
    """The others are through at once, and have nothing to write."""
    report.write = lambda *_: None
    watch.BEAT, watch.GRACE = 0.1, 0.2
    save = checkpoints.save

    def slowly(*args):
        time.sleep(3)
        return save(*args)

    checkpoints.save = slowly
    config = TrainConfig.from_toml(recipe, ["train.steps=6", "data.broken_limit=0.1", "data.val="])
    with pytest.raises(RunError) as raised:
        train(config, out)
    return dist.get_rank(), str(raised.value)


def test_too_many_broken_clips_end_no_checkpoint_in_its_midst(recipe, tmp_path):
    """The error of one rank ends the others, however long the first one writes."""
    said = run(2, saved_slowly, recipe, tmp_path)
    assert sum("2 of 12 cannot be read" in text for _, text in said) == 1
    assert find_checkpoint(tmp_path) is not None
