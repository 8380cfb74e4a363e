"""Measure calls within a time: what does not fit into it, or into memory, is left out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from mbt_fast import dispatch
from mbt_fast.profiling import machine
from mbt_fast.profiling.timing import (
    Deadline,
    Run,
    interleaved_times,
    median_and_tails,
    peak_memory,
    quickest_fifth,
    timed,
)

ENDS = ("median", "p20", "p80")
MIB = 2**20
MIN_ROUNDS, MAX_ROUNDS = 2, 100
NO_TIME = "not run: --seconds were over"
NO_MEMORY = "not run: it does not fit into memory"
INTERRUPTED = "not run: interrupted before"


@dataclass(frozen=True)
class Measurement:
    """What was measured of one call.

    Args:
        seconds: Of each round; empty if the call was left out. The same round of another call was
            measured next to it.
        peak_bytes: Of tensors that exist in the call and not before it.
        why_not: Why the call was left out.
    """

    seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    why_not: str = ""

    @property
    def median(self) -> float:
        """Seconds of a call."""
        return median_and_tails(self.seconds)[0]

    @property
    def quick(self) -> float:
        """Seconds of a call in the quickest fifth of the rounds."""
        return quickest_fifth(self.seconds)

    def latencies(self) -> dict[str, float | None]:
        """Milliseconds by the name of a record's field; ``None`` where nothing was measured."""
        if not self.seconds:
            return {f"latency_ms_{end}": None for end in ENDS}
        tails = zip(ENDS, median_and_tails(self.seconds), strict=True)
        return {f"latency_ms_{end}": 1e3 * value for end, value in tails}


class Outcome(NamedTuple):
    """A measurement for each call, and whether a KeyboardInterrupt cut them short."""

    measured: dict[str, Measurement]
    interrupted: bool


def measure(
    calls: Mapping[str, Run],
    device: torch.device,
    deadline: Deadline,
    *,
    before: Mapping[str, Measurement] | None = None,
    costs: Mapping[str, float] | None = None,
    min_rounds: int | None = None,
    max_rounds: int | None = None,
    may_be_refused: bool = False,
    on_call: Callable[[], object] = lambda: None,
) -> Outcome:
    """Run every call once, which warms it up and counts its memory; then time them in rounds.

    The first round of a call follows its warm-up, or is the warm-up where no time is left for
    more. The other rounds are interleaved.

    Args:
        calls: By name. The first is measured in any case.
        device: Where they run.
        deadline: No call starts afterwards, and none is begun for which the time does not suffice.
        before: What is known of some of the calls, which are then warm.
        costs: What a call costs, relative to the others; of others it may be twice as slow as the
            slowest before it.
        min_rounds: A call is begun if there is time for so many; ``None`` for ``MIN_ROUNDS``.
        max_rounds: At most so many of each call; ``None`` for ``MAX_ROUNDS``.
        may_be_refused: Leave out a call that its backend refuses, instead of raising.
        on_call: Called after each call.

    Returns:
        Of every call what was measured, or why it was left out.
    """
    guarded = {name: _Guarded(call, may_be_refused) for name, call in calls.items()}
    found, interrupted = dict(before or {}), False
    try:
        for name, call in guarded.items():
            if name not in found:
                expected = _still_to_spend(name, found, costs, min_rounds or MIN_ROUNDS)
                found[name] = _begin(call, expected, device, deadline)
                on_call()
    except KeyboardInterrupt:
        interrupted = True
    ran = [name for name in calls if name in found and found[name].seconds]
    if not interrupted and sum(found[name].seconds[-1] for name in ran) <= deadline.left():
        times = interleaved_times(
            {name: guarded[name] for name in ran},
            device,
            seconds=deadline.left(),
            min_rounds=0,
            max_rounds=(max_rounds or MAX_ROUNDS) - 1,
            on_call=lambda name, elapsed: on_call(),
        )
        interrupted = times.interrupted
        for name, seconds in times.seconds.items():
            found[name] = replace(found[name], seconds=(*found[name].seconds, *seconds))
    for name, call in guarded.items():
        if call.why_not:
            found[name] = Measurement(why_not=call.why_not)
    not_reached = Measurement(why_not=INTERRUPTED)
    return Outcome({name: found.get(name, not_reached) for name in calls}, interrupted)


class _Guarded:
    """A call that is left out from then on when it does not fit into memory or is refused."""

    def __init__(self, call: Run, may_be_refused: bool) -> None:
        self._call, self._may_be_refused = call, may_be_refused
        self.why_not = ""

    def __call__(self) -> None:
        if self.why_not:
            return
        try:
            self._call()
        except (RuntimeError, MemoryError) as error:
            if machine.is_out_of_memory(error):
                self.why_not = NO_MEMORY
            elif self._may_be_refused and isinstance(error, dispatch.BackendError):
                self.why_not = str(error)
            else:
                raise


def _begin(
    call: _Guarded, expected: float, device: torch.device, deadline: Deadline
) -> Measurement:
    """Warm a call up and time it once, if the seconds that are expected of it then are left."""
    if expected > 0 and deadline.left() < expected:
        return Measurement(why_not=NO_TIME)
    before = deadline.left()
    peak = peak_memory(call, device)
    warm_up = before - deadline.left()
    if warm_up > deadline.left() and not call.why_not:  # another call would end too late
        return Measurement((warm_up,), peak)
    return Measurement((timed(call, device),), peak)


def _still_to_spend(
    name: str,
    found: Mapping[str, Measurement],
    costs: Mapping[str, float] | None,
    min_rounds: int,
) -> float:
    """Seconds for the warm-up and the least rounds of a call, and the missing rounds of others.

    0 for the first, of which nothing is known.
    """
    spent = {other: known.seconds[0] for other, known in found.items() if known.seconds}
    if not spent:
        return 0.0
    if costs is None:
        expected = 2 * max(spent.values())
    else:
        expected = costs[name] * max(seconds / costs[other] for other, seconds in spent.items())
    return (1 + min_rounds) * expected + (min_rounds - 1) * sum(spent.values())
