"""A rank that fails says so once, and the others end with it."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from mbt_fast.errors import InputError, RunError
from mbt_fast.parallel.watch import BEAT, STORE_GONE, Watch

_PATIENCE = 5 * BEAT  # for the reason of another rank, and for its beat
_WORDS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


@contextmanager
def failing(watch: Watch, *, launched: bool) -> Iterator[None]:
    """Tell the other ranks of an error of this one, and turn theirs into one line.

    Args:
        watch: Of this rank.
        launched: The process is of this run alone, and is about to end with it.

    Raises:
        RunError: In place of the error of a collective: another rank has failed, or does not answer
            any more. Errors of this rank's own are raised as they are.
    """
    try:
        yield
    except BaseException as error:
        if launched:
            ignore_launcher()
        theirs = _reason(watch) if _is_of_a_collective(error) else None
        first = _fail(watch, theirs or f"rank {watch.rank} failed at {watch.place.what}")
        if theirs is None and not first:
            theirs = _failure(watch, _PATIENCE) or "another rank failed"
        if theirs is not None:
            message = f"rank {watch.rank} ends at {watch.place.what}: {theirs}"
            raise RunError(message) from None
        if not isinstance(error, InputError):  # whose message says what it is about
            sys.stderr.write(f"rank {watch.rank} failed at {watch.place}\n")
        raise


def ignore_launcher() -> None:
    """Ignore SIGTERM from now on: a launcher that sees one rank end sends it to the others.

    They are about to end too, and are to do so with their own last words and exit codes.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _is_of_a_collective(error: BaseException) -> bool:
    """Whether it says that the others are not there, and not what is wrong here."""
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in _WORDS)


def _fail(watch: Watch, reason: str) -> bool:
    try:
        return watch.fail(reason)
    except RuntimeError:  # without a store nobody can be told
        return True


def _reason(watch: Watch) -> str | None:
    """What another rank says of itself, or who has fallen silent; ``None`` if it is neither."""
    try:
        before = watch.seen()
        failure = _failure(watch, _PATIENCE)
        after = watch.seen()
    except RuntimeError:
        return STORE_GONE
    silent = [rank for rank in range(watch.world) if before[rank].beats == after[rank].beats]
    if failure or not silent:
        return failure
    ranks = ", ".join(f"rank {rank}" for rank in silent)
    return f"{ranks} {'is' if len(silent) == 1 else 'are'} gone"


def _failure(watch: Watch, seconds: float) -> str | None:
    """What another rank says of itself within some seconds."""
    end = time.monotonic() + seconds
    while True:
        failure = watch.failure()
        if failure or time.monotonic() > end:
            return failure
        time.sleep(0.1)
