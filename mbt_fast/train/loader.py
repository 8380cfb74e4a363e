"""Batches from worker processes, and how long the model waits for them.

Workers are started by ``forkserver``. A ``fork`` of this process would copy torch's threads' locks
and a GPU's context. ``spawn`` imports torch in every worker, about a second each and at each
evaluation; the fork server imports it once, after which a worker starts in 0.02 seconds.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.queues import Queue
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mbt_fast.errors import RunError
from mbt_fast.train.order import generator

# Which this process alone answers; Windows has not all of them.
SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGTERM", "SIGUSR1", "SIGINT")
    if name in signal.Signals.__members__
)
_PATIENCE = 1.0  # seconds
_TIMED_OUT = "DataLoader timed out"  # after which torch's iterator can be asked again
_PRELOADED = ["mbt_fast.train.dataset", "av", "numpy"]


class Loader:
    """Batches in the order of a sampler, read ahead by workers.

    Attributes:
        waited: Seconds that the last ``next`` took.
        stopped: Whether it ended because it was asked to.

    Args:
        dataset: Its items are picklable, and it too.
        batches: The keys of every batch.
        collate: From items to a batch.
        workers: Number of processes; 0 reads in this one.
        pinned: Batches are copied to pinned memory, for a GPU.
        stop: Asked before each batch and, with workers, each second of waiting for one; ``True``
            ends the batches.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batches: Sampler[list[Any]],
        collate: Callable[[list[Any]], Any],
        *,
        workers: int,
        pinned: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start the workers; they begin to read."""
        self.waited, self.stopped, self._stop = 0.0, False, stop
        others = multiprocessing.active_children()
        with _one_line_about_workers():
            self._batches: Iterator[Any] | None = iter(
                DataLoader(
                    dataset,
                    batch_sampler=batches,
                    collate_fn=collate,
                    num_workers=workers,
                    worker_init_fn=init_worker,
                    multiprocessing_context=workers_context() if workers else None,
                    pin_memory=pinned,
                    timeout=_PATIENCE if workers else 0,
                    generator=generator(0, "loader"),  # or it would draw from torch's own
                )
            )
        self._workers = set(multiprocessing.active_children()).difference(others)

    def __iter__(self) -> Iterator[Any]:
        """Return the loader itself."""
        return self

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            RunError: A worker died.
        """
        start = time.perf_counter()
        while self._batches is not None and not self._asked_to_stop():
            try:
                with _one_line_about_workers():
                    batch = next(self._batches)
            except RuntimeError as error:
                if not str(error).startswith(_TIMED_OUT):
                    raise
            else:
                self.waited = time.perf_counter() - start
                return batch
        raise StopIteration

    def close(self) -> None:
        """End the workers."""
        self._batches = None  # torch ends them when its iterator goes, but for those that hang
        for worker in self._workers:
            worker.kill()

    def _asked_to_stop(self) -> bool:
        self.stopped = self.stopped or self._stop()
        return self.stopped


def init_worker(_: int) -> None:
    """Make a worker use one thread, leave signals to the process of the model, and end with it.

    A cluster sends its signals to all processes of a job, and a terminal its interrupts. That the
    process of the model was killed, torch would not notice: it watches the fork server, which lives
    as long as a worker does.
    """
    torch.set_num_threads(1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    Queue._on_queue_feeder_error = staticmethod(_end_without_hand_over)  # type: ignore[attr-defined]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_without_hand_over(error: BaseException, _: Any) -> None:
    """End a worker whose batch finds no room in shared memory: it would be waited for forever."""
    sys.stderr.write(f"a process that reads clips cannot hand over a batch: {error}\n")
    sys.stderr.flush()
    os._exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def workers_context() -> BaseContext:
    """How workers are started: ``spawn`` where a system has no fork server.

    The fork server ignores the signals too: it would take the workers with it.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with _ignored_signals():
        forkserver.ensure_running()
    return context


@contextmanager
def _ignored_signals() -> Iterator[None]:
    """What is started meanwhile ignores them for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _one_line_about_workers() -> Iterator[None]:
    """Say in one line that a worker died, which torch says in a traceback."""
    try:
        yield
    except RuntimeError as error:
        lines = str(error).splitlines()
        if not lines or not lines[0].startswith("DataLoader worker"):
            raise
        raise RunError(
            f"a process that reads clips died: {lines[0]}; often for want of memory, then "
            "data.workers must be lower, or of shared memory, /dev/shm"
        ) from error
