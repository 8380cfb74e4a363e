"""The SLURM script stops a run before the time limit, has it queued again, and it goes on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mbt_fast.train.log import read

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "train.sbatch"
STUBS = {
    "srun": 'exec "$@"',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$CALLS"; fi',
}
STEPS = 60


@pytest.fixture
def job(clips, tmp_path):
    """Start the script as SLURM would, on one host with two ranks."""
    for name, line in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    started = []
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
    }
    arguments = [str(clips / "recipe.toml"), f"train.steps={STEPS}", "eval.every_epochs=0"]

    def start(*more, restarts=3):
        script = tmp_path / "train.sbatch"
        script.write_text(SCRIPT.read_text().replace("restarts 3", f"restarts {restarts}"))
        command = ["bash", str(script), *arguments, *more, "--out", str(tmp_path / "run")]
        with (tmp_path / "output").open("a") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # torchrun and its ranks too


def steps_of(folder):
    log = folder / "run" / "log.jsonl"
    return [r["step"] for r in read(log) if r["kind"] == "train"] if log.exists() else []


@pytest.mark.slow
def test_job_is_stopped_saved_queued_again_and_ends(job, tmp_path):
    first = job()
    while len(steps_of(tmp_path)) < 5:
        assert first.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.1)
    first.send_signal(signal.SIGUSR1)
    assert first.wait(timeout=120) != 0
    assert (tmp_path / "calls").read_text() == f"requeue {os.getpid()}\n"
    (saved,) = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1:]
    assert 5 <= int(saved.removeprefix("step-")) < STEPS

    assert job().wait(timeout=300) == 0, (tmp_path / "output").read_text()
    assert steps_of(tmp_path) == list(range(1, STEPS + 1))
    assert (tmp_path / "calls").read_text().count("requeue") == 1


@pytest.mark.slow
def test_job_that_fails_is_not_queued_again(job, tmp_path):
    assert job("data.train=gone.csv", restarts=0).wait(timeout=120) != 0
    assert not (tmp_path / "calls").exists()
    assert "gone.csv" in (tmp_path / "output").read_text()
