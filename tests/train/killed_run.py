"""Train in a process that kills itself at a named moment.

A moment is ``name:count``: the process dies when that point is reached for the ``count``-th time.
The process comes from the fork server of ``ranks.py``, which has imported torch once for all.
"""

import multiprocessing
import os
import shutil
import signal
import sys

import torch
from ranks import PRELOADED

from mbt_fast.train import TrainConfig, checkpoints, report, run, state, train
from mbt_fast.train.log import Log
from mbt_fast.train.loop import Loop


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name, count, act=die):
    """Let a function act instead of its ``count``-th call."""
    real, calls = getattr(owner, name), iter(range(1, 1_000_000))

    def counted(*args, **options):
        if next(calls) == count:
            act(*args)
        return real(*args, **options)

    setattr(owner, name, counted)


def half_a_line(log, record):
    log._file.write('{"kind": "train", "st')
    log._file.flush()
    die()


def half_a_checkpoint(_, folder, record):
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    die()


def within_a_score(count):
    """Die when the first clips of a score are read."""
    evaluate = run.evaluate

    def replaced(*_):
        run.evaluate = lambda *args, **options: evaluate(*args, **{**options, "stop": die})

    before(run.Run, "_score", count, replaced)


def a_worker(count):
    """Kill a process that reads clips; this one then says so."""

    def kill(loop, step, batch):
        for worker in loop.batches._batches._workers:
            os.kill(worker.pid, signal.SIGKILL)

    before(Loop, "_step", count, kill)


MOMENTS = {
    "step": lambda count: before(Loop, "_step", count),
    "log": lambda count: before(Log, "append", count, half_a_line),
    "write": lambda count: before(state.TrainingState, "write", count, half_a_checkpoint),
    "point": lambda count: before(checkpoints, "point", count),
    "prune": lambda count: before(shutil, "rmtree", count),
    "score": within_a_score,
    "worker": a_worker,
    "never": lambda count: None,
}


def start(recipe, out, moment, errors, *overrides):
    """Start such a process; what it writes to standard error is added to the file ``errors``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(recipe, out, moment, errors, overrides))
    process.start()
    return process


def _run(recipe, out, moment, errors, overrides):
    """What the process does."""
    with open(errors, "a") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    torch.set_num_threads(1)
    name, _, count = moment.partition(":")
    report.write = lambda *_: None
    MOMENTS[name](int(count or 0))
    train(TrainConfig.from_toml(recipe, overrides), out)
