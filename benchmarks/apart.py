"""A pass in a process of its own: what one process finds by chance is not all there is.

Where the loader puts code and stack, which pages lie where: all that stays as it is while a process
lives, and moves the times of short calls, torch's own like ours. What is known of it is evened out
(``benchmarks.allocator``, ``benchmarks.depth``). The rest no number of rounds in one process tells;
between processes it shows as what it is, noise.
"""

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from benchmarks.allocator import keep_freed_memory
from benchmarks.case import Scope
from benchmarks.measure import Timing, Visit, visit
from benchmarks.sample import Sample

SPAWN = get_context("spawn")


@contextmanager
def new_process(module: str, scope: Scope) -> Iterator[Visit]:
    """Visits to the cases that a module describes, all in one new process.

    If it dies, of a lack of memory say, the case that was visited fails, and another takes over.
    """
    line = _start(module, scope)

    def visit_there(sample: Sample, timing: Timing) -> None:
        nonlocal line
        try:
            line.send((sample.index, sample.blank, sample.state, timing))
            sample.state = line.recv()
        except (EOFError, ConnectionError):
            sample.fail("its process died, maybe of a lack of memory")
            line.close()
            line = _start(module, scope)

    try:
        yield visit_there
    finally:
        line.close()


def _start(module: str, scope: Scope) -> Connection:
    """The line to a process that lives as long as the line does, or this process."""
    line, far_end = SPAWN.Pipe()
    arguments = (far_end, module, scope, torch.get_num_threads())
    SPAWN.Process(target=_answer, args=arguments, daemon=True).start()
    far_end.close()
    return line


def _answer(line: Connection, module: str, scope: Scope, threads: int) -> None:
    """In the process: one visit after the other, until nobody asks."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    cases = list(importlib.import_module(module).cases(scope))  # in the order of every process
    gc.freeze()  # what is imported stays: without it each visit's collection takes 0.1 s
    while True:
        try:
            index, blank, state, timing = line.recv()
        except EOFError:
            return
        sample = Sample(cases[index], blank, index, *state)
        visit(sample, timing)
        line.send(sample.state)
