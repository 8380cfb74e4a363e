"""Run a function on several processes that form a group, as torchrun's would.

The processes talk through gloo on the CPU, have one thread each and meet through a file, so no port
is chosen and tests can run side by side.
"""

import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist

SECONDS = 300  # on a quiet machine a run takes a second or two
MORE = 8  # after an error, for the errors of the others
# Once for all ranks of all tests; an optimizer or a DTensor would import torch._dynamo on each.
PRELOADED = ["torch._dynamo", "mbt_fast.parallel.gradients", "mbt_fast.parallel.tensor"]
PRELOADED += ["av", "mbt_fast.cli.main", "pytest", "torch.distributed.fsdp"]


class RankError(Exception):
    """What went wrong on a rank, with its traceback."""


def run(world, function, *args, seconds=SECONDS):
    """Call ``function(*args)`` on every rank of a group of ``world`` processes.

    What they write to standard error stands in this process' own when they have ended.

    Args:
        world: Number of processes.
        function: At the top of a module, so that it can be pickled; likewise its arguments.
        *args: What it is given.
        seconds: After which the processes are killed. Each then prints where it is.

    Returns:
        What it returned, from rank 0 on.

    Raises:
        RankError: It raised an error, of which that of every rank is shown that has one within some
            seconds of the first; or a rank died, or time was up.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = {}, []
        for rank in range(world):
            receiver, sender = context.Pipe(duplex=False)
            call = (rank, world, Path(folder) / "store", sender, seconds, function, args)
            processes.append(context.Process(target=_rank, args=call, name=f"rank {rank}"))
            processes[-1].start()
            sender.close()  # so that the end of the process is the end of the pipe
            ends[receiver] = rank
        try:
            return _results(ends, time.monotonic() + seconds + 5)
        finally:
            for process in processes:
                process.kill()
                process.join()
            for written in sorted(Path(folder).glob("*.err")):
                sys.stderr.write(written.read_text())


def _results(ends, deadline):
    """What comes out of the pipes, by rank; ends soon after the first error."""
    results, errors, left = {}, {}, dict(ends)
    while left:
        ready = wait(left, timeout=max(0, deadline - time.monotonic()))
        if not ready:
            break
        for receiver in ready:
            rank = left.pop(receiver)
            try:
                good, result = pickle.loads(receiver.recv_bytes())
            except EOFError:
                good, result = False, "died"
            (results if good else errors)[rank] = result
        if errors:
            deadline = min(deadline, time.monotonic() + MORE)
    if errors:
        raise RankError("\n".join(f"rank {rank}: {errors[rank]}" for rank in sorted(errors)))
    if left:
        raise RankError(f"ranks {sorted(left.values())} have not ended in time")
    return [results[rank] for rank in sorted(results)]


def _rank(rank, world, store, sender, seconds, function, args):
    """What each process does."""
    with store.with_name(f"{rank}.err").open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())  # that of the fork server is another test's
    faulthandler.dump_traceback_later(seconds, exit=True)
    for number in (signal.SIGTERM, signal.SIGUSR1):  # the fork server may ignore them
        signal.signal(number, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=store.as_uri(),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=seconds),
        )
        result = pickle.dumps((True, function(*args)))
        dist.barrier()  # none leaves while another still listens to it
        dist.destroy_process_group()
    except BaseException:
        result = pickle.dumps((False, traceback.format_exc()))
    sender.send_bytes(result)
