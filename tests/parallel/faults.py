"""Train by the command line on several processes, of which some meet a fault at a named moment.

The processes join as torchrun's do: the store is held by who starts them. What each prints is kept.
"""

import multiprocessing
import os
import resource
import signal
import sys
import time
from functools import partial
from multiprocessing.connection import wait
from typing import NamedTuple

import torch
import torch.distributed as dist
from ranks import PRELOADED

from mbt_fast import MBT
from mbt_fast.cli.main import main
from mbt_fast.parallel import watch
from mbt_fast.train import checkpoints, report
from mbt_fast.train.loop import Loop
from mbt_fast.train.predictions import Predictions
from mbt_fast.train.run import Run
from mbt_fast.train.state import TrainingState

SECONDS = 60  # in which a group ends once one of it has; on a quiet machine it takes a few
_AGENT = "TORCHELASTIC_USE_AGENT_STORE"
LONGEST = 300  # of a whole group; on a quiet machine it takes two


class Ended(NamedTuple):
    """How a process ended: its exit code, minus the signal that killed it, and what it printed."""

    code: int
    text: str

    @property
    def lines(self):
        """Without the steps' progress and what torch and gloo log."""
        return [line for line in self.text.splitlines() if line and not line.startswith("[")]


# Moments that all ranks come to. The kill in a checkpoint is with half of it written, or shared.
MOMENTS = {
    "step": (Loop, "_step"),
    "forward": (MBT, "forward_modalities"),
    "write": (TrainingState, "_tensors"),
    "renamed": (checkpoints, "point"),
    "score": (Predictions, "__init__"),
    "scored": (Run, "_point_to_best"),
}


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def terminate():
    signal.raise_signal(signal.SIGTERM)


def fail():
    raise ValueError("wrong on purpose")


def fill_the_disk():
    """From now on no file can grow beyond 2 kB: logs are shorter, and weights are not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))


def at(moment, act, count=1):
    """What sets a fault: let a process act when it comes to a moment for the ``count``-th time."""
    return partial(_set, moment, act, count)


def _set(moment, act, count):
    owner, name = MOMENTS[moment]
    real, calls = getattr(owner, name), iter(range(1, 1_000_000))

    def counted(*args, **options):
        if next(calls) == count:
            act()
        return real(*args, **options)

    setattr(owner, name, counted)


def wait_impatiently():
    """Let a rank that waits say so after a second."""
    watch.PATIENCE, watch.BEAT = 1.0, 0.2


def train(recipe, out, *overrides, world=2, faults=None, agent=True):
    """Train on ``world`` ranks.

    Args:
        recipe: A file.
        out: The folder of the run.
        *overrides: Of the recipe.
        world: Number of processes.
        faults: By rank, what is called in its process first; see ``at``.
        agent: The store is held by this process, as by torchrun's agent, and not by rank 0.

    Returns:
        How each ended.
    """
    faults = faults or {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    port = store.port
    if not agent:
        del store  # its port is free again
    command = ["train", str(recipe), *overrides, "--out", str(out)]
    out.parent.mkdir(parents=True, exist_ok=True)
    texts = [out.with_name(f"{out.name}.rank{rank}.txt") for rank in range(world)]
    processes = []
    for rank, text in enumerate(texts):
        place = {"RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port, _AGENT: agent}
        call = (place, text, faults.get(rank), command)
        processes.append(context.Process(target=_rank, args=call))
        processes[-1].start()
    try:
        _join(processes)
        return [
            Ended(process.exitcode, text.read_text())
            for process, text in zip(processes, texts, strict=True)
        ]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _join(processes):
    """Wait for the first process, and then not long for the others."""
    sentinels = [process.sentinel for process in processes]
    wait(sentinels, timeout=LONGEST)
    deadline = time.monotonic() + SECONDS
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    assert not late, f"ranks {late} have not ended within {SECONDS} s of the first"


def _rank(place, text, fault, command):
    """What each process does."""
    output = os.open(text, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):  # the fork server ignores them
        signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "localhost", "LOCAL_RANK": os.environ["RANK"]}
    torch.set_num_threads(1)
    report.write = lambda *_: None
    if fault is not None:
        fault()
    sys.exit(main(command))


if __name__ == "__main__":  # under torchrun: kill rank 1 at a moment, and not again
    moment, *arguments = sys.argv[1:]
    report.write = lambda *_: None
    torch.set_num_threads(1)
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        at(moment, kill, 3)()
    sys.exit(main(["train", *arguments]))
