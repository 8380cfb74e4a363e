"""Calls at several depths of the stack, because where its frame lies decides how fast a kernel is.

Torch's gelu_backward (float32, without tanh, one thread) takes 3.0 to 3.6 ms or 3.8 to 4.7, as the
offset of its frame within a page has it: its registers, spilled there, seem to alias the streams
that it reads and writes. A process keeps one offset, the loader's choice, for all of its calls.
T. Mytkowicz et al., "Producing wrong data without doing anything obviously wrong!", ASPLOS 2009.
"""

from collections.abc import Iterator
from itertools import cycle

from benchmarks.case import Run

LEVELS = 10  # of about 416 bytes in CPython 3.11: once through a page of 4096


def at_depths(run: Run, calls: int, first: int = 0) -> Run:
    """So many calls, shared evenly by all depths; fewer go on where the last ones ended.

    Args:
        run: What is called.
        calls: How often.
        first: The depth to begin with.
    """
    depths = cycle([*range(first % LEVELS, LEVELS), *range(first % LEVELS)])

    def several() -> None:
        for count in shares(calls):
            _at(next(depths), run, count)

    return several


def shares(calls: int) -> Iterator[int]:
    """How many calls are made at each depth."""
    parts = min(calls, LEVELS)
    few, more = divmod(calls, parts)
    yield from (few + (part < more) for part in range(parts))


def _at(depth: int, run: Run, count: int) -> int:
    """Make so many calls that deep. A level takes a third of a microsecond."""
    if depth:
        return next(_at(depth - 1, run, count) for _ in (None,))  # a generator has frames of C too
    for _ in range(count):
        run()
    return count
