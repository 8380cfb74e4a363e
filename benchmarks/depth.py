"""Calls at several depths of the stack, because where its frame lies decides how fast a kernel is.

Torch's gelu_backward (float32, exact GELU, one thread) takes a quarter longer where its frame has
some parts of a page than where it has others: what it spills there seems to alias the streams that
it reads and writes (``python -m benchmarks.by_depth``). A process keeps one offset, by chance, for
all of its calls: T. Mytkowicz et al., "Producing wrong data without doing anything obviously
wrong!", ASPLOS 2009.
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
            at_depth(next(depths), run, count)

    return several


def shares(calls: int) -> Iterator[int]:
    """How many calls are made at each depth."""
    parts = min(calls, LEVELS)
    few, more = divmod(calls, parts)
    yield from (few + (part < more) for part in range(parts))


def at_depth(depth: int, run: Run, count: int = 1) -> int:
    """Make so many calls, that many levels down. A level takes a third of a microsecond."""
    if depth:
        # A generator's frame is one of C too.
        return next(at_depth(depth - 1, run, count) for _ in (None,))
    for _ in range(count):
        run()
    return count
