"""The rounds of a case in several passes over all cases of its entry, as long as there is time."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from benchmarks.case import Case
from benchmarks.measure import Timing, Visit, visit
from benchmarks.record import Ceilings, Record
from benchmarks.sample import Sample

OUT_OF_TIME = "out of time"


class Passes:
    """Visits to the cases of one entry in turn, pass after pass, until its time is over.

    A case does not end when its passes agree: the first few may by luck, and would then look surer
    than they are. One that is not reached at all says so. Between two passes other entries may have
    theirs.
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
        self._planned = sum(timing.passes if case.timed else 1 for case in cases)  # visits
        self._visits = 0
        self._seconds = 0.0  # spent in passes

    def one_more(self) -> bool:
        """Whether there was anything left to do, and time to do it."""
        waiting = [s for s in self.samples if s.wants_more(self.timing.passes)]
        left = self.timing.seconds - self._seconds
        if not waiting or (self._visits > 0 and left <= 0):
            return False
        start = time.perf_counter()
        with self.begin() as visit_there:
            self._visit_all(waiting, visit_there, end=start + left)
        self._seconds += time.perf_counter() - start
        return True

    def _visit_all(self, waiting: Sequence[Sample], visit_there: Visit, end: float) -> None:
        for index, sample in enumerate(waiting):
            left = end - time.perf_counter()
            if left <= 0 and self._visits > 0:
                break
            share = left / max(self._planned - self._visits, len(waiting) - index)
            self.on_visit(sample)
            visit_there(sample, replace(self.timing, seconds=share))
            self._visits += 1
        for sample in waiting:
            if not sample.records:
                sample.fail(OUT_OF_TIME)

    def records(self, ceilings: Ceilings) -> list[Record]:
        """Of all cases, as far as they were measured."""
        clock = self.timing.clock_name
        return [record for sample in self.samples for record in sample.finished(clock, ceilings)]
