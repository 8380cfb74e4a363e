"""A run that was killed, at any moment and several times, ends as one that never was."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import alive, descendants
from same_run import assert_same_run

from mbt_fast.train.log import read

SCRIPT = Path(__file__).with_name("killed_run.py")


@pytest.fixture
def start(clips, tmp_path):
    """Start a run in a process of its own; the same folder has the same run."""

    def start(name, moment="never", workers=0, epochs=3):
        command = [sys.executable, SCRIPT, clips / "recipe.toml", tmp_path / name, moment]
        return subprocess.Popen(
            [*map(str, command), f"data.workers={workers}", f"train.epochs={epochs}"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process, *, killed=False):
    _, error = process.communicate(timeout=120)
    assert process.returncode == (-9 if killed else 0), f"{process.args}: {error}"


def test_killed_in_a_step_and_in_a_save(start, tmp_path):
    finish(start("run", "step:6"), killed=True)
    finish(start("run", "write:2", workers=1), killed=True)
    finish(start("run", workers=2))
    finish(start("whole"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_killed_ten_times_in_every_part_of_a_run(start, tmp_path):
    moments = ["step:2", "log:3", "write:1", "point:2", "prune:1", "score:1", "log:2", "score:2"]
    for number, moment in enumerate(moments):
        finish(start("run", moment, workers=number % 3, epochs=6), killed=True)
    process = start("run", "worker:1", workers=2, epochs=6)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "a process that reads clips died" in error
    finish(start("run", "step:2", workers=1, epochs=6), killed=True)
    finish(start("run", epochs=6))
    finish(start("whole", epochs=6))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_killed_ten_times_at_random(start, tmp_path):
    draw = random.Random(0)
    for number in range(10):
        process = start("run", workers=number % 3, epochs=12)
        log = tmp_path / "run" / "log.jsonl"
        known = len(read(log))
        while process.poll() is None and len(read(log)) <= known:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.communicate()
    finish(start("run", workers=1, epochs=12))
    finish(start("whole", epochs=12))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_killed_run_leaves_no_process(start, tmp_path):
    process = start("run", "step:3", workers=2)
    children = set()
    while process.poll() is None:
        children |= descendants(process.pid)
        time.sleep(0.02)
    process.communicate()
    assert len(children) >= 3, "a fork server and two workers"
    assert not alive(children, seconds=10)
