"""A run that was killed, at any moment and several times, ends as one that never was."""

import random
import signal
import time

import killed_run
import pytest
from processes import alive, descendants
from same_run import assert_same_run

from mbt_fast.train.log import read

KILLED = -signal.SIGKILL


@pytest.fixture
def errors(tmp_path):
    """Where all processes of a test write their errors."""
    return tmp_path / "errors.txt"


@pytest.fixture
def start(clips, tmp_path, errors):
    """Start a run in a process of its own; the same folder has the same run."""
    processes = []

    def start(name, moment="never", workers=0, epochs=3):
        options = (f"data.workers={workers}", f"train.epochs={epochs}")
        run = tmp_path / name
        processes.append(killed_run.start(clips / "recipe.toml", run, moment, errors, *options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture
def finish(errors):
    """Wait for the end of a process, which must have this exit code."""

    def finish(process, code=0):
        process.join(timeout=120)
        assert process.exitcode == code, errors.read_text()

    return finish


def test_killed_in_a_step_and_in_a_save(start, finish, tmp_path):
    finish(start("run", "step:6"), KILLED)
    finish(start("run", "write:2", workers=1), KILLED)
    finish(start("run", workers=2))
    finish(start("whole"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_killed_ten_times_in_every_part_of_a_run(start, finish, errors, tmp_path):
    moments = ["step:2", "log:3", "write:1", "point:2", "prune:1", "score:1", "log:2", "score:2"]
    for number, moment in enumerate(moments):
        finish(start("run", moment, workers=number % 3, epochs=6), KILLED)
    finish(start("run", "worker:1", workers=2, epochs=6), code=1)
    assert "a process that reads clips died" in errors.read_text()
    finish(start("run", "step:2", workers=1, epochs=6), KILLED)
    finish(start("run", epochs=6))
    finish(start("whole", epochs=6))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_killed_ten_times_at_random(start, finish, tmp_path):
    draw = random.Random(0)
    for number in range(10):
        process = start("run", workers=number % 3, epochs=12)
        log = tmp_path / "run" / "log.jsonl"
        known = len(read(log))
        while process.exitcode is None and len(read(log)) <= known:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.join()
    finish(start("run", workers=1, epochs=12))
    finish(start("whole", epochs=12))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_killed_run_leaves_no_process(start):
    process = start("run", "step:3", workers=2)
    children = set()
    while process.exitcode is None:
        children |= descendants(process.pid)
        time.sleep(0.02)
    process.join()
    assert len(children) >= 3, "a fork server and two workers"
    assert not alive(children, seconds=10)
