"""A fault drill: whatever happens to a rank, the group ends soon, says why, and the run goes on.

Each run is compared with one that nothing disturbed, bit for bit: two ranks add in one order.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial

import faults
import pytest
from faults import at, fail, fill_the_disk, kill, terminate, train, wait_impatiently
from processes import alive, descendants
from same_run import assert_same_run

from mbt_fast.checkpoint.checksums import check_checksums
from mbt_fast.checkpoint.runs import find_checkpoint
from mbt_fast.train import checkpoints
from mbt_fast.train.log import read

pytestmark = pytest.mark.distributed
STOPPED = 75
SHORT = ("train.steps=3", "data.val=")


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def how(request):
    """Six steps of two epochs; checkpoints of 2, 4 and 6, and of 3, for its score."""
    return ["train.steps=6", "checkpoint.every_steps=2", f"train.parallel={request.param}"]


@pytest.fixture(scope="module")
def whole(recipe, how, tmp_path_factory):
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert [rank.code for rank in train(recipe, run, *how)] == [0, 0]
    assert steps_of(run) == [4, 6]
    return run


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def steps_of(run):
    """Of the checkpoints."""
    return sorted(checkpoints.step_of(folder) for folder in run.glob("checkpoints/step-*"))


def assert_whole_folder(run):
    """What was not finished is gone at the latest when the run goes on; the last one is whole."""
    last = find_checkpoint(run)
    assert last is None or check_checksums(last) is None


def assert_same(run, whole):
    """The same run, and the same checkpoints."""
    assert_same_run(run, whole)
    assert steps_of(run) == steps_of(whole)
    assert not list(run.glob("checkpoints/.*"))


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def assert_one_line(rank, *words):
    """A rank that ends for another one says so in one line, without a traceback."""
    errors = [line for line in rank.lines if "error" in line or "Traceback" in line]
    assert len(errors) == 1, rank.text
    assert all(word in errors[0] for word in words), rank.text
    assert rank.code in (1, 2), rank.text


# (moment, count, rank that is killed); the group starts once for each, in one folder.
KILLS_IN_A_SHARED_SAVE = [("write", 1, 0), ("write", 1, 1), ("score", 1, 1)]
KILLS = [("step", 2, 1), *KILLS_IN_A_SHARED_SAVE, ("renamed", 1, 0), ("step", 2, 0)]


def test_a_rank_that_is_killed_ends_the_group_and_the_run_goes_on(recipe, how, whole, run):
    kills = KILLS_IN_A_SHARED_SAVE if "train.parallel=fsdp" in how else KILLS
    for moment, count, killed in kills:
        ranks = train(recipe, run, *how, faults={killed: at(moment, kill, count)})
        assert ranks[killed].code == -signal.SIGKILL, (moment, ranks[killed].text)
        assert_one_line(ranks[1 - killed], f"rank {1 - killed} ends", f"rank {killed} is gone")
        assert_whole_folder(run)
    assert [rank.code for rank in train(recipe, run, *how)] == [0, 0]
    assert_same(run, whole)


def test_a_rank_that_held_the_store_is_missed_too(recipe, run):
    ranks = train(recipe, run, *SHORT, faults={0: at("step", kill, 2)}, agent=False)
    assert ranks[0].code == -signal.SIGKILL
    assert_one_line(ranks[1], "rank 1 ends at step 2")


def test_a_signal_to_one_rank_saves_the_same_step_of_all(recipe, how, whole, run):
    ranks = train(recipe, run, *how, faults={1: at("step", terminate, 3)})
    assert [rank.code for rank in ranks] == [STOPPED, STOPPED], ranks
    assert "stopped by SIGTERM at step 3 of 6; the same command resumes" in ranks[0].text
    assert steps_of(run) == [2, 3]
    # The score of step 3 is made before any step: a sharded model is then scored first.
    assert [rank.code for rank in train(recipe, run, *how)] == [0, 0]
    assert_same(run, whole)


def test_a_slow_rank_is_named_and_nothing_ends(recipe, how, run):
    slow = at("step", partial(time.sleep, 5), 2)
    ranks = train(recipe, run, *how, *SHORT, faults={0: wait_impatiently, 1: slow})
    assert [rank.code for rank in ranks] == [0, 0]
    waiting = [line for line in ranks[0].lines if "waiting for rank 1 (at step 2, clips)" in line]
    assert len(waiting) == 1, ranks[0].text
    assert waiting[0].startswith("step 2, ")


def test_an_exception_on_one_rank_is_printed_once_with_its_clips(recipe, how, run):
    ranks = train(recipe, run, *how, *SHORT, faults={1: at("forward", fail, 2)})
    assert ranks[1].code == 1
    assert ranks[1].text.count("ValueError: wrong on purpose") == 1
    assert "rank 1 failed at step 2, forward, with the clips " in ranks[1].text
    assert_one_line(ranks[0], "rank 0 ends at step 2", "rank 1 failed at step 2, forward")


def test_all_ranks_fall_back_to_the_checkpoint_before_a_corrupt_one(recipe, how, whole, run):
    shutil.copytree(whole, run)
    flip_a_bit(find_checkpoint(run) / "model.safetensors")
    ranks = train(recipe, run, *how)
    assert [rank.code for rank in ranks] == [0, 0], ranks
    assert "warning: the run goes on from step 4: " in ranks[0].text
    assert "warning" not in ranks[1].text
    (kept,) = run.glob("checkpoints/corrupt-*")
    assert kept.name == "corrupt-step-00000006"
    assert_same(run, whole)


def test_without_a_whole_checkpoint_all_ranks_end_with_one_line(recipe, how, whole, run):
    shutil.copytree(whole, run)
    for weights in run.glob("checkpoints/*/model.safetensors"):
        flip_a_bit(weights)
    ranks = train(recipe, run, *how)
    assert_one_line(ranks[0], "must have a whole checkpoint to go on from")
    assert_one_line(ranks[1], "rank 1 ends at ", "rank 0 failed")
    assert steps_of(run) == [4, 6]


def test_a_full_disk_of_rank_0_ends_all_and_the_last_checkpoint_is_whole(recipe, how, whole, run):
    ranks = train(recipe, run, *how, faults={0: at("write", fill_the_disk, 2)})
    assert_one_line(ranks[0], "step-00000003 cannot be written", "the last whole one is ")
    assert_one_line(ranks[1], "rank 1 ends at step ", "rank 0 failed at step 3, checkpoint")
    assert steps_of(run) == [2]
    assert_whole_folder(run)
    assert [rank.code for rank in train(recipe, run, *how)] == [0, 0]
    assert_same(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp"], indirect=True)
def test_torchrun_restarts_a_group_of_which_a_rank_was_killed(recipe, how, whole, run):
    command = [*torchrun("--max-restarts=1"), faults.__file__, "step", recipe, *how]
    code, output, children = watched([*command, "data.workers=1", "--out", run])
    assert code == 0, output
    assert output.count("step 6 of 6") >= 1
    assert_same(run, whole)
    assert len(children) >= 2 * (2 + 2), "two ranks, twice, and what reads their clips"
    assert not alive(children, seconds=10)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fsdp"], indirect=True)
def test_a_signal_to_torchrun_saves_and_the_run_goes_on(recipe, how, whole, run):
    command = [*torchrun(), "-m", "mbt_fast", "train", recipe, *how, "--out", run]

    pending = [signal.SIGTERM]  # a second one would end torchrun at once

    def stop_early(process):
        if pending and read(run / "log.jsonl"):
            process.send_signal(pending.pop())

    code, output, children = watched(command, stop_early)
    assert code != 0
    assert "stopped by SIGTERM at step " in output
    assert 0 < max(steps_of(run)) < 6
    assert not alive(children, seconds=10)
    assert [rank.code for rank in train(recipe, run, *how)] == [0, 0]
    assert_same(run, whole)


def torchrun(*options):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node=2", *options]


def watched(command, act=lambda process: None):
    """Run a command; its exit code, what it printed, and all processes that came from it."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, text=True
        )
        children, deadline = set(), time.monotonic() + faults.LONGEST
        while process.poll() is None and time.monotonic() < deadline:
            children |= descendants(process.pid)
            act(process)
            time.sleep(0.1)
        process.kill()
        process.wait()
        output.seek(0)
        return process.returncode, output.read(), children
