"""The command line under torchrun."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from training import numbers

from mbt_fast.checkpoint.runs import find_checkpoint
from mbt_fast.train.log import read

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
HERE = Path(__file__).parent


def torchrun(*arguments, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def test_a_group_that_torchrun_restarts_goes_on_by_itself(recipe, tmp_path):
    options = ["train", recipe, "data.val=", "checkpoint.every_steps=2"]
    options += ["augment.mixup=0.3", "train.parallel=fsdp"]
    whole = torchrun("-m", "mbt_fast", *options, "--out", tmp_path / "whole")
    killed = HERE / "killed_rank.py"
    restarted = torchrun(killed, *options, "--out", tmp_path / "killed", restarts=1)
    for finished in (whole, restarted):
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.count("step 5 of 5") == 1, "one rank prints"
    assert "rank 0 ends at step 4" in restarted.stderr
    logs = [[numbers(r) for r in read(tmp_path / out / "log.jsonl")] for out in ("whole", "killed")]
    assert logs[0] == logs[1]
    one, other = (
        load_file(find_checkpoint(tmp_path / out) / "model.safetensors")
        for out in ("whole", "killed")
    )
    assert all(one[name].equal(tensor) for name, tensor in other.items())


def test_an_error_of_one_rank_ends_torchrun(recipe, tmp_path):
    ended = torchrun("-m", "mbt_fast", "train", recipe, "train.lr=1e30", "--out", tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.count("grad_norm must be finite") == 1
    assert "Traceback" not in ended.stderr.partition("torch/distributed/elastic")[0]
