"""Time the variants of an entry side by side, within what is left of a budget."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from mbt_fast.bench.rows import Row
from mbt_fast.profiling.machine import is_out_of_memory
from mbt_fast.profiling.measure import Setting
from mbt_fast.testing import interleaved_times
from mbt_fast.testing.timing import timed

Run = Callable[[], object]

MIN_ROUNDS, MAX_ROUNDS = 2, 100
NO_TIME = "not run: --seconds were over"
NO_MEMORY = "not run: it does not fit into memory"


class Deadline:
    """The moment at which something should be over."""

    def __init__(self, seconds: float) -> None:
        """So many seconds from now."""
        self._end = time.perf_counter() + seconds

    def left(self) -> float:
        """Seconds until then; below zero afterwards."""
        return self._end - time.perf_counter()

    def share(self, part: float) -> "Deadline":
        """An earlier moment: after this part of what is left."""
        return Deadline(part * self.left())


@dataclass
class Bench:
    """What all comparisons share, and the rows that they have found.

    Args:
        setting: How models are run.
        on_call: Told of each finished call.
        rows: Of all entries so far, complete or cut short by a KeyboardInterrupt.
        taken: By op, the backend that ``"auto"`` takes.
    """

    setting: Setting
    on_call: Callable[[], None] = lambda: None
    rows: list[Row] = field(default_factory=list)
    taken: dict[str, str] = field(default_factory=dict)

    def compare(self, rows: Mapping[str, Row], runs: Mapping[str, Run], deadline: Deadline) -> None:
        """Time what runs, in interleaved rounds after calls that warm up.

        The first variant runs in any case. Another is left out where the time that its calls would
        take, if it is as slow as the slowest so far, is not left.

        Args:
            rows: By variant, without times.
            runs: By variant; those without an entry are not run.
            deadline: Start no round that would end later, the first two apart.

        Raises:
            KeyboardInterrupt: Pressed while rounds were run; the rows have what was measured.
        """
        found = dict(rows)
        warm: dict[str, float] = {}
        for name, run in runs.items():
            if warm and deadline.left() < _still_to_spend(warm):
                found[name] = replace(found[name], note=NO_TIME)
                continue
            try:
                warm[name] = self._warm_up(run, deadline)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                found[name] = replace(found[name], note=NO_MEMORY)
        times = interleaved_times(
            {name: runs[name] for name in warm},
            self.setting.device,
            seconds=deadline.left(),
            min_rounds=MIN_ROUNDS,
            max_rounds=MAX_ROUNDS,
            on_call=lambda name, elapsed: self.on_call(),
        )
        complete = min((len(seconds) for seconds in times.seconds.values()), default=0)
        for name, seconds in times.seconds.items():
            found[name] = replace(found[name], seconds=tuple(seconds[:complete]))
        self.rows += found.values()
        if times.interrupted:
            raise KeyboardInterrupt

    def _warm_up(self, run: Run, deadline: Deadline) -> float:
        """Seconds of a call: of a second one, where there is time, for the first is slower."""
        elapsed = timed(run, self.setting.device)
        self.on_call()
        if deadline.left() > elapsed:
            elapsed = timed(run, self.setting.device)
            self.on_call()
        return elapsed

    def of(self, part: str, entry: str) -> dict[str, Row]:
        """The rows of an entry, by variant."""
        return {row.variant: row for row in self.rows if (row.part, row.entry) == (part, entry)}


def _still_to_spend(warm: Mapping[str, float]) -> float:
    """Seconds for the least rounds of all so far, and for one more variant."""
    return MIN_ROUNDS * sum(warm.values()) + (1 + MIN_ROUNDS) * max(warm.values())
