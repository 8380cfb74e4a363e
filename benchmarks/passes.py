"""The rounds of a case in several passes over all cases of its entry, as long as there is time."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from benchmarks.case import Case
from benchmarks.measure import Timing, Visit, visit
from benchmarks.record import Ceilings, Record
from benchmarks.sample import Sample

OUT_OF_TIME = "out of time"
FOR_ALL = 0.5  # of the time, if there are several passes; the rest is for cases that stay unsure
A_FEW = 0.25  # of such a pass is the least for a few cases: a process takes seconds to start


class Passes:
    """Visits to the cases of one entry in turn, pass after pass, until its time is over.

    All cases share half of the time, and those whose ratios are still unsure the rest: what waits
    for memory needs many times the passes of what computes. None ends before: the first few passes
    may agree by luck, and would then look surer than they are. One that is not reached says so.
    """

    def __init__(
        self,
        entry: str,
        cases: Sequence[Case],
        timing: Timing,
        begin: Callable[[], AbstractContextManager[Visit]] = lambda: nullcontext(visit),
        on_visit: Callable[[Sample], None] = lambda sample: None,
    ) -> None:
        """Nothing is measured yet.

        Args:
            entry: Name in the registry.
            cases: What to visit.
            timing: How long, all passes together.
            begin: Gives what visits the cases of a pass; in this process by default.
            on_visit: Told of each visit that begins.
        """
        self.samples = [
            Sample.of(entry, case, timing.device, index) for index, case in enumerate(cases)
        ]
        self.timing, self.begin, self.on_visit = timing, begin, on_visit
        self._visits = 0
        self._begun = 0  # passes
        self._seconds = 0.0  # spent in them

    @property
    def spent(self) -> float:
        """The share of the time that is over."""
        return self._seconds / self.timing.seconds

    def one_more(self) -> bool:
        """Whether there was anything left to do, and time to do it."""
        waiting = [s for s in self.samples if s.wants_more(self.timing.passes)]
        left = self.timing.seconds - self._seconds
        if not waiting or (self._visits > 0 and left <= 0):
            return False
        start = time.perf_counter()
        share = min(left, self._share(waiting))
        self._begun += 1
        with self.begin() as visit_there:
            self._visit_all(waiting, visit_there, start + share, start + left)
        self._seconds += time.perf_counter() - start
        return True

    def _share(self, waiting: Sequence[Sample]) -> float:
        """Seconds of the next pass: for all cases, or for those that are still unsure."""
        passes, several = self.timing.passes, self.timing.passes > 1
        for_all = self.timing.seconds * (FOR_ALL if several else 1)
        if self._begun < passes:
            return (for_all - self._seconds) / (passes - self._begun)
        few = _timed(waiting) / max(_timed(self.samples), 1)
        return for_all / passes * max(few, A_FEW)

    def _visit_all(
        self, waiting: Sequence[Sample], visit_there: Visit, end_of_pass: float, end: float
    ) -> None:
        timed = _timed(waiting)  # not yet visited
        for sample in waiting:
            now = time.perf_counter()
            if now >= end and self._visits > 0:
                break
            self.on_visit(sample)
            visit_there(sample, replace(self.timing, seconds=(end_of_pass - now) / max(timed, 1)))
            self._visits += 1
            timed -= sample.case.timed
        for sample in waiting:
            if not sample.records:
                sample.fail(OUT_OF_TIME)

    def records(self, ceilings: Ceilings) -> list[Record]:
        """Of all cases, as far as they were measured."""
        clock = self.timing.clock_name
        return [record for sample in self.samples for record in sample.finished(clock, ceilings)]


def _timed(samples: Sequence[Sample]) -> int:
    return sum(sample.case.timed for sample in samples)


def in_turns(entries: Sequence[Passes]) -> Iterator[Passes]:
    """Pass after pass, each of the entry that has spent the least of its time; told when made.

    Each entry so spreads over the whole run, whatever the others need.
    """
    waiting = list(entries)
    while waiting:
        entry = min(waiting, key=lambda passes: passes.spent)
        if entry.one_more():
            yield entry
        else:
            waiting.remove(entry)
