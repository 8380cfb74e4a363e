"""A clock that no load of the machine changes, and an interrupt at a chosen call."""

from itertools import count
from types import SimpleNamespace

import pytest

from mbt_fast.profiling import measurement, timing

TICK = 1e-3  # seconds of every call


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock is one tick later; no comparison has more than three rounds.

    Its value is the tick, in seconds.
    """
    ticks = count()
    fake = SimpleNamespace(perf_counter=lambda: TICK * next(ticks))
    monkeypatch.setattr(timing, "time", fake)
    monkeypatch.setattr(measurement, "MAX_ROUNDS", 3)
    return TICK


@pytest.fixture
def interrupt_at(monkeypatch):
    """Raise KeyboardInterrupt instead of one call of what is measured, counted from 1."""

    def arrange(at):
        calls = count(1)

        def interrupted(original):
            def wrapper(*args, **kwargs):
                if next(calls) == at:
                    raise KeyboardInterrupt
                return original(*args, **kwargs)

            return wrapper

        monkeypatch.setattr(measurement, "peak_memory", interrupted(measurement.peak_memory))
        monkeypatch.setattr(measurement, "timed", interrupted(measurement.timed))
        monkeypatch.setattr(timing, "timed", interrupted(timing.timed))

    return arrange
