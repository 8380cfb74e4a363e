"""Clocks. Variants are interleaved, so that a drift of the machine hits all of them alike."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import NamedTuple

import torch


class Times(NamedTuple):
    """Seconds of every call, by variant, and whether a KeyboardInterrupt cut the rounds short."""

    seconds: dict[str, list[float]]
    interrupted: bool


def median_and_tails(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantile of at least one value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    tails = quantiles(values, n=5, method="inclusive")
    return median(values), tails[0], tails[3]


def timed(
    run: Callable[[], object],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that one call takes: by the clock on the CPU, between two events on a GPU."""
    if device.type == "cuda":
        return _seconds_between_events(run, device)
    start = clock()
    run()
    return clock() - start


def _seconds_between_events(run: Callable[[], object], device: torch.device) -> float:
    """Until the device has finished, the host's delay in between included."""
    stream = torch.cuda.current_stream(device)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream.synchronize()
    first.record(stream)
    run()
    last.record(stream)
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def interleaved_times(
    variants: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    seconds: float,
    min_rounds: int = 2,
    max_rounds: int = 100,
    seed: int = 0,
    on_call: Callable[[str, float], None] = lambda name, elapsed: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Time variants in rounds of one call each, every round in another order.

    Warm-up is the caller's: the first round counts.

    Args:
        variants: What to time, by name.
        device: Where it runs.
        seconds: Start no further round that would end after this, ``min_rounds`` apart.
        min_rounds: Rounds that are run in any case.
        max_rounds: Rounds that are not exceeded.
        seed: Decides over the order in each round.
        on_call: Told of each call: its name and its seconds.
        clock: What measures a call on the CPU; ``time.process_time`` counts this process's work
            alone, and so suits one thread on a machine that others use. On a GPU CUDA events
            measure. Rounds are limited by the wall clock.

    Returns:
        What was measured; after a KeyboardInterrupt, what was measured until then.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    shuffle = random.Random(seed).shuffle
    start = time.perf_counter()
    try:
        for index in range(max_rounds):
            passed = time.perf_counter() - start
            if index >= min_rounds and passed + passed / index > seconds:
                break
            names = list(variants)
            shuffle(names)
            for name in names:
                times[name].append(timed(variants[name], device, clock))
                on_call(name, times[name][-1])
    except KeyboardInterrupt:
        return Times(times, interrupted=True)
    return Times(times, interrupted=False)
