"""From cases to records: warm-up, memory, operators, then times in interleaved rounds.

Every round calls each variant once, in another order, so that a drift of the machine hits all of
them alike; a ratio is that of the quickest rounds (``benchmarks.quiet``). The rounds of a case come
in several visits (``benchmarks.passes``). On a GPU CUDA events measure, and where launches may be
what costs, each variant is replayed from a CUDA graph too.
"""

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks.case import Case, Run, Variant
from benchmarks.depth import at_depths
from benchmarks.launches import count_launches
from benchmarks.quiet import Seconds
from benchmarks.record import Ceilings, Record
from benchmarks.sample import Sample
from mbt_fast.testing import interleaved_times, peak_memory, saved_bytes

# Seconds that one reading of the clock should last at least; on a CPU calls of a few milliseconds
# then come from several depths of the stack.
READING = {"cpu": 15e-3, "cuda": 5e-3}
MAX_CALLS = 2000
# Rounds, within so many seconds. glibc keeps seven leftovers of aligned blocks before it takes one
# again: up to nine calls fault for their pages.
WARM_UP, WARM_UP_SECONDS = 10, 0.25


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long to measure, where, and by which clock on a CPU.

    Attributes:
        device: Where.
        seconds: For all passes of all cases together.
        min_rounds: Of a pass, whatever time it takes.
        max_rounds: Of a pass.
        passes: Of each case, if time allows; with several, more of those that stay unsure.
        clock: ``time.process_time`` counts this process's own work. With one thread its ratios hold
            while others are at work on the machine.
    """

    device: torch.device
    seconds: float
    min_rounds: int = 3
    max_rounds: int = 201
    passes: int = 1
    clock: Callable[[], float] = time.perf_counter

    @property
    def clock_name(self) -> str:
        """As records call it."""
        return "cuda events" if self.device.type == "cuda" else self.clock.__name__


Visit = Callable[[Sample, Timing], None]


def measure_case(entry: str, case: Case, timing: Timing, ceilings: Ceilings) -> list[Record]:
    """One record per variant, after one pass; one that fails has its reason in place of times."""
    sample = Sample.of(entry, case, timing.device)
    visit(sample, timing)
    return sample.finished(timing.clock_name, ceilings)


def visit(sample: Sample, timing: Timing) -> None:
    """One more pass of a case; in the first one memory and operators are counted."""
    case, threads = sample.case, torch.get_num_threads()
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    try:
        with case.around():
            _measure(sample, timing)
    except Exception as error:  # out of memory, say; the other cases go on
        sample.fail(_one_line(error))
    finally:
        torch.set_num_threads(threads)
        gc.collect()
        if timing.device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(sample: Sample, timing: Timing) -> None:
    start = time.perf_counter()
    case, first = sample.case, not sample.records
    variants = _with_graphs(case.variants(), case, timing.device)
    if first:
        sample.records = {
            name: _counted(sample.record(name, variant), variant, case, timing.device)
            for name, variant in variants.items()
        }
    runs = sample.working(variants)
    if not runs or not case.timed:
        return
    _warm_up(runs)
    if first:
        sample.calls = _calls(runs, timing)
    left = timing.seconds - (time.perf_counter() - start)
    seconds = _times(runs, sample.calls, replace(timing, seconds=left), seed=len(sample.passes))
    sample.passes.append(seconds)


def _with_graphs(
    variants: Mapping[str, Variant], case: Case, device: torch.device
) -> dict[str, Variant]:
    """The variants and, on a GPU, where the case asks for it, each as a CUDA graph."""
    if not case.graph or device.type != "cuda":
        return dict(variants)
    return dict(variants) | {
        f"{name}, graph": replace(variant, run=_replayed(variant.run))
        for name, variant in variants.items()
        if variant.run is not None and variant.replayable
    }


def _times(runs: Mapping[str, Run], calls: int, timing: Timing, seed: int = 0) -> Seconds:
    """Seconds of so many calls of each, by round, in orders that the seed decides over."""
    repeat = partial(at_depths, first=seed) if timing.device.type == "cpu" else _repeat
    times = interleaved_times(
        {name: repeat(run, calls) for name, run in runs.items()},
        timing.device,
        seconds=timing.seconds,
        min_rounds=timing.min_rounds,
        max_rounds=timing.max_rounds,
        seed=seed,
        clock=timing.clock,
    )
    if times.interrupted:
        raise KeyboardInterrupt
    return times.seconds


def _counted(record: Record, variant: Variant, case: Case, device: torch.device) -> Record:
    """Warm up, then count what a call needs; a peer may fail in ways of its own."""
    if variant.run is None:
        return record
    try:
        variant.run()
        record = replace(record, peak_memory=peak_memory(variant.run, device))
        if case.launches and (device.type == "cuda" or not variant.compiled):
            record = replace(record, launches=count_launches(variant.run, device))
        if variant.saves is not None:
            kept = saved_bytes(variant.saves, variant.apart_from)
            record = replace(record, saved_memory=kept)
    except Exception as error:
        return replace(record, error=_one_line(error))
    return record


def _calls(runs: Mapping[str, Run], timing: Timing) -> int:
    """So many to one reading that the fastest variant takes long enough; equal for all."""
    warm = _times(runs, 1, replace(timing, seconds=0.0, min_rounds=1, max_rounds=1))
    fastest = max(1e-9, min(min(seconds) for seconds in warm.values()))
    return max(1, min(MAX_CALLS, math.ceil(READING[timing.device.type] / fastest)))


def _warm_up(runs: Mapping[str, Run]) -> None:
    """Call all until threads, caches and memory stand as they will stand."""
    end = time.perf_counter() + WARM_UP_SECONDS
    for _ in range(WARM_UP):
        for run in runs.values():
            run()
        if time.perf_counter() >= end:
            return


def _repeat(run: Run, calls: int) -> Run:
    def several() -> None:
        for _ in range(calls):
            run()

    return several if calls > 1 else run


def _replayed(run: Run) -> Run:
    """The same as a CUDA graph, captured in its first call."""
    graphs: list[torch.cuda.CUDAGraph] = []

    def replay() -> None:
        if not graphs:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                run()
                run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            graphs.append(graph)
        graphs[0].replay()

    return replay


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
