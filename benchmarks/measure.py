"""From cases to records: warm-up, memory, operators, then times in interleaved rounds.

Every round calls each variant once, in another order, so that a drift of the machine hits all of
them alike; a ratio is the median over the rounds of that round's ratio. The rounds of a case come
in several passes over all cases (``benchmarks.sample``). On a GPU CUDA events measure, and where
launches may be what costs, each variant is replayed from a CUDA graph too.
"""

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from benchmarks.case import Case, Run, Variant
from benchmarks.launches import count_launches
from benchmarks.record import Ceilings, Record
from benchmarks.sample import Sample, Seconds
from mbt_fast.testing import interleaved_times, peak_memory, saved_bytes

READING = 5e-3  # seconds that one reading of the clock should last at least
MAX_CALLS = 2000
OUT_OF_TIME = "out of time"

Visit = Callable[[Sample, "Timing"], None]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long to measure, where, and by which clock on a CPU.

    Attributes:
        device: Where.
        seconds: For all passes of all cases together.
        min_rounds: Of a pass, whatever time it takes.
        max_rounds: Of a pass.
        passes: That every case has if time allows.
        most_passes: That a case has if its ratios stay unsure.
        uncertainty: Relative standard error at which a ratio is sure.
        clock: ``time.process_time`` counts this process's own work. With one thread its ratios hold
            while others are at work on the machine.
    """

    device: torch.device
    seconds: float
    min_rounds: int = 3
    max_rounds: int = 201
    passes: int = 1
    most_passes: int = 1
    uncertainty: float = 0.01
    clock: Callable[[], float] = time.perf_counter

    @property
    def clock_name(self) -> str:
        """As records call it."""
        return "cuda events" if self.device.type == "cuda" else self.clock.__name__


class Passes:
    """Visits to the cases of one entry in turn, pass after pass, until its time is over.

    Cases whose ratios are sure enough after the least number of passes leave their time to others.
    A case that is not reached at all says so. Between two passes other entries may have theirs.
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
        self.samples = [_sample(entry, case, timing, index) for index, case in enumerate(cases)]
        self.timing, self.begin, self.on_visit = timing, begin, on_visit
        usual = (timing.passes + timing.most_passes) // 2
        self._planned = sum(usual if case.timed else 1 for case in cases)  # visits
        self._visits = self._passes = 0
        self._seconds = 0.0  # spent in passes

    def one_more(self) -> bool:
        """Whether there was anything left to do, and time to do it."""
        timing = self.timing
        waiting = [s for s in self.samples if s.wants_more(timing.passes, timing.uncertainty)]
        left = timing.seconds - self._seconds
        if not waiting or self._passes == timing.most_passes or (self._passes and left <= 0):
            return False
        start = time.perf_counter()
        with self.begin() as visit_there:
            self._visit_all(waiting, visit_there, end=start + left)
        self._seconds += time.perf_counter() - start
        self._passes += 1
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


def measure_case(entry: str, case: Case, timing: Timing, ceilings: Ceilings) -> list[Record]:
    """One record per variant, after one pass; one that fails has its reason in place of times."""
    sample = _sample(entry, case, timing)
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
    if first:
        sample.calls = _calls(runs, timing)
    if sample.calls > 1 or not first:
        for run in runs.values():
            _repeat(run, sample.calls)()
    left = timing.seconds - (time.perf_counter() - start)
    sample.passes.append(_times(runs, sample.calls, replace(timing, seconds=left)))


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


def _times(runs: Mapping[str, Run], calls: int, timing: Timing) -> Seconds:
    """Seconds of so many calls of each, by round."""
    times = interleaved_times(
        {name: _repeat(run, calls) for name, run in runs.items()},
        timing.device,
        seconds=timing.seconds,
        min_rounds=timing.min_rounds,
        max_rounds=timing.max_rounds,
        clock=timing.clock,
    )
    if times.interrupted:
        raise KeyboardInterrupt
    return times.seconds


def _sample(entry: str, case: Case, timing: Timing, index: int = 0) -> Sample:
    """The case before its first pass."""
    on_cpu = timing.device.type == "cpu"
    blank = Record(
        entry=entry,
        case=case.name,
        variant="",
        mode=case.mode,
        shape=case.shape,
        dtype=str(case.dtype).removeprefix("torch."),
        device=timing.device.type,
        threads=(case.threads or torch.get_num_threads()) if on_cpu else None,
    )
    return Sample(case, blank, index)


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
    return max(1, min(MAX_CALLS, math.ceil(READING / fastest)))


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
