"""Who waits for whom: every rank tells the store where it is, and reads it when it waits long."""

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import torch.distributed as dist

BEAT = 1.0  # seconds from one look at the store to the next
PATIENCE = 30.0  # seconds at one place, after which a rank asks who is behind
GRACE = 5.0  # seconds in which a process may end by itself once another has failed
STORE_GONE = "the process that holds the store of the group is gone"
_SHOWN = 4
_COUNT, _REASON = "failures", "failure"


class Place:
    """Where a process is in the order of things that all ranks do.

    Attributes:
        count: Places that it has come to.
        what: The last one.
        clips: Names those that it has at hand.
    """

    def __init__(self) -> None:
        """At the beginning."""
        self.count, self.what = 0, "the start"
        self.clips: Callable[[], str] | None = None

    def move(self, what: str, clips: Callable[[], str] | None = None) -> None:
        """Come to the next place."""
        self.what, self.clips = what, clips
        self.count += 1

    def __str__(self) -> str:
        """With the clips, if there are any."""
        return f"{self.what}, with the clips {self.clips()}" if self.clips else self.what


class Seen(NamedTuple):
    """What a rank told: how often it did, how many places it came to, and the last of them."""

    beats: int
    places: int
    what: str


class Watch:
    """A thread that tells the other ranks where this one is, and ends it if it hangs for good.

    A rank that is at one place for long says once who is behind it; of several that wait, the first
    one speaks. Nothing ends for that: slow is not wrong. Where another rank has failed, this
    process has some seconds to end by itself.

    Args:
        rank: Of this process.
        world: Number of processes.
        store: One in which nothing was said before.
        place: Where this process is.
        patience: Seconds.
    """

    def __init__(
        self, rank: int, world: int, store: dist.Store, place: Place, patience: float | None = None
    ) -> None:
        """Start nothing yet."""
        self.rank, self.world, self.place = rank, world, place
        self._store = store
        self._patience = PATIENCE if patience is None else patience
        self._ends, self._ended = False, threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        """Start the thread."""
        self._tell(0)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End it."""
        self._ended.set()

    def fail(self, reason: str) -> bool:
        """Tell the others that this rank ends, and why; whether it is the first to do so."""
        self._ends = True
        first = self._store.add(_COUNT, 1) == 1
        if first:
            self._store.set(_REASON, reason)
        return first

    def failure(self) -> str | None:
        """Why the group ends, or ``None``."""
        return self._store.get(_REASON).decode() if self._store.check([_REASON]) else None

    def seen(self) -> list[Seen]:
        """What every rank has told last."""
        return [self._seen(rank) for rank in range(self.world)]

    def _seen(self, rank: int) -> Seen:
        key = f"at/{rank}"
        if not self._store.check([key]):  # to get it would wait for it
            return Seen(0, 0, "the start")
        beats, count, what = self._store.get(key).decode().split("\n", 2)
        return Seen(int(beats), int(count), what)

    def _tell(self, beats: int) -> None:
        self._store.set(f"at/{self.rank}", f"{beats}\n{self.place.count}\n{self.place.what}")

    def _run(self) -> None:
        beats, last = 0, -1
        since = look = 0.0
        while not self._ended.wait(BEAT):
            beats, now = beats + 1, time.monotonic()
            if self.place.count != last:
                last, since, look = self.place.count, now, self._patience
            try:
                self._tell(beats)
                failed = self.failure()
                if now - since >= look:
                    look = math.inf if self._say_who_is_behind() else look + self._patience
            except RuntimeError:  # the store ends with the process that holds it
                failed = STORE_GONE
            if failed and not self._ends:
                self._end(failed)

    def _say_who_is_behind(self) -> bool:
        """Whether anybody is."""
        own, seen = self.place.count, self.seen()
        behind = [rank for rank, other in enumerate(seen) if other.places < own]
        waiting = [rank for rank in range(self.world) if rank not in behind]
        if behind and self.rank == min(waiting, default=self.rank):
            names = ", ".join(f"rank {rank} (at {seen[rank].what})" for rank in behind[:_SHOWN])
            more = f" and {len(behind) - _SHOWN} more" if len(behind) > _SHOWN else ""
            sys.stderr.write(f"{self.place.what}: waiting for {names}{more}\n")
        return bool(behind)

    def _end(self, reason: str) -> None:
        """Let the process end by itself, as it does where a collective raises an error."""
        if not self._ended.wait(GRACE):
            end_now(f"rank {self.rank} ends at {self.place.what}: {reason}")


def end_now(message: str) -> NoReturn:
    """End this process, whatever its threads do."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    os._exit(1)
