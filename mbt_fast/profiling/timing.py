"""Clocks and memory of calls; the one timing loop.

Variants are interleaved, so that a drift of the machine affects all of them alike. Memory is
counted, not sampled: the peak of a call, and what it keeps for the backward.
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from statistics import median, quantiles
from typing import NamedTuple

import torch
from torch import Tensor, UntypedStorage
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]


class Times(NamedTuple):
    """Seconds of every call, by variant, and whether a KeyboardInterrupt cut the rounds short."""

    seconds: dict[str, list[float]]
    interrupted: bool


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


def median_and_tails(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantile of at least one value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    tails = quantiles(values, n=5, method="inclusive")
    return median(values), tails[0], tails[3]


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """Where the median of a whole population lies, with 95 % confidence; no distribution assumed.

    The ends are order statistics, two standard deviations of Binomial(n, 1/2) from the middle. Up
    to 5 values give their whole range, which is less sure.
    """
    ordered = sorted(values)
    cut = max(0, int(len(ordered) / 2 - sqrt(len(ordered))))
    return ordered[cut], ordered[-1 - cut]


def quickest_fifth(values: Sequence[float]) -> float:
    """Mean of the quickest fifth of at least one time: others on the machine only slow it down."""
    count = max(1, len(values) // 5)
    return sum(sorted(values)[:count]) / count


def timed(run: Run, device: torch.device) -> float:
    """Seconds that one call takes: by the clock on the CPU, between two events on a GPU.

    There the second event comes when the device has finished; delays of the host in between count.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    stream = torch.cuda.current_stream(device)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream.synchronize()
    first.record(stream)
    run()
    last.record(stream)
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def interleaved_times(
    variants: Mapping[str, Run],
    device: torch.device,
    *,
    seconds: float,
    min_rounds: int = 2,
    max_rounds: int = 100,
    on_call: Callable[[str, float], object] = lambda name, elapsed: None,
) -> Times:
    """Time variants in rounds of one call each, every round in another order.

    The first round counts: warm up before.

    Args:
        variants: What to time, by name.
        device: Where it runs.
        seconds: No further round starts that would end after this, and no further call starts after
            it.
        min_rounds: This many rounds run in any case.
        max_rounds: No more rounds than this run.
        on_call: Called after each call with its name and its seconds.

    Returns:
        What was measured; after a KeyboardInterrupt, what was measured until then.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    shuffle = random.Random(0).shuffle
    start = time.perf_counter()
    try:
        for index in range(max_rounds):
            passed = time.perf_counter() - start
            if index >= max(1, min_rounds) and passed + passed / index > seconds:
                break
            names = list(variants)
            shuffle(names)
            for name in names:
                if index >= min_rounds and time.perf_counter() - start > seconds:
                    return Times(times, interrupted=False)
                times[name].append(timed(variants[name], device))
                on_call(name, times[name][-1])
    except KeyboardInterrupt:
        return Times(times, interrupted=True)
    return Times(times, interrupted=False)


def peak_memory(run: Run, device: torch.device) -> int:
    """Bytes of tensors that ``run`` holds at its peak, beyond those that existed before.

    On a GPU from the caching allocator's statistics; on the CPU from the profiler's record of every
    allocation, so that temporaries inside operators count too.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = record.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def saved_bytes(run: Run, apart_from: Iterable[Tensor] = ()) -> int:
    """Bytes of memory that autograd keeps for the backward of ``run``, each counted once.

    Args:
        run: Called once, with gradients.
        apart_from: Tensors that exist in any case, such as parameters.
    """
    storages: dict[int, UntypedStorage] = {}  # keeps them, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    known = {tensor.untyped_storage().data_ptr() for tensor in apart_from}
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in known)
