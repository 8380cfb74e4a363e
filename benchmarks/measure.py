"""From cases to records: warm-up, memory, operators, then times in interleaved rounds.

Every round calls each variant once, in another order, so that a drift of the machine hits all of
them alike; a ratio is the median over the rounds of that round's ratio. On a GPU CUDA events
measure, and where launches may be what costs, each variant is replayed from a CUDA graph too.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.case import Case, Run, Variant
from benchmarks.launches import count_launches
from benchmarks.record import Ceilings, Record, Spread, significant
from mbt_fast.testing import interleaved_times, peak_memory, saved_bytes

READING = 5e-3  # seconds that one reading of the clock should last at least
MAX_CALLS = 2000
OUT_OF_TIME = "out of time"
NO_CALL = Variant(run=None)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long to measure, where, and by which clock on a CPU.

    ``time.process_time`` counts this process's own work. With one thread its ratios hold while
    others are at work on the machine.
    """

    device: torch.device
    seconds: float
    min_rounds: int = 3
    max_rounds: int = 201
    clock: Callable[[], float] = time.perf_counter

    @property
    def clock_name(self) -> str:
        """As records call it."""
        return "cuda events" if self.device.type == "cuda" else self.clock.__name__


def measure_all(
    entry: str, cases: Sequence[Case], timing: Timing, ceilings: Ceilings
) -> Iterator[Record]:
    """The records of all cases, each given its share of the time that is left."""
    end = time.perf_counter() + timing.seconds
    for index, case in enumerate(cases):
        left = end - time.perf_counter()
        if left <= 0 and index > 0:
            yield _record(entry, case, timing, "all", error=OUT_OF_TIME)
            continue
        share = replace(timing, seconds=left / (len(cases) - index))
        yield from measure_case(entry, case, share, ceilings)


def measure_case(entry: str, case: Case, timing: Timing, ceilings: Ceilings) -> list[Record]:
    """One record per variant; a variant that fails has its reason in place of times."""
    threads = torch.get_num_threads()
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    try:
        with case.around():
            return _measure(entry, case, timing, ceilings)
    finally:
        torch.set_num_threads(threads)
        gc.collect()
        if timing.device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(entry: str, case: Case, timing: Timing, ceilings: Ceilings) -> list[Record]:
    start = time.perf_counter()
    try:
        variants = dict(case.variants())
    except Exception as error:  # out of memory, say; the other cases go on
        return [_record(entry, case, timing, "all", error=_one_line(error))]
    if case.graph and timing.device.type == "cuda":
        variants |= {
            f"{name}, graph": replace(variant, run=_replayed(variant.run))
            for name, variant in variants.items()
            if variant.run is not None and variant.replayable
        }
    records = {
        name: _counted(_record(entry, case, timing, name, v), v, case, timing.device)
        for name, v in variants.items()
    }
    working = {
        name: run
        for name, variant in variants.items()
        if (run := variant.run) is not None and records[name].error is None
    }
    if not working or not case.timed:
        return list(records.values())
    left = timing.seconds - (time.perf_counter() - start)
    try:
        calls = _calls(working, timing)
        times = _times(working, calls, replace(timing, seconds=left))
    except Exception as error:  # whose it was is not known
        failed = {name: replace(records[name], error=_one_line(error)) for name in working}
        return list({**records, **failed}.values())
    for name in working:
        timed = _with_times(records[name], name, times, calls, case.baseline)
        records[name] = _with_shares(replace(timed, clock=timing.clock_name), ceilings)
    return list(records.values())


def _times(runs: Mapping[str, Run], calls: int, timing: Timing) -> dict[str, list[float]]:
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


def _record(
    entry: str,
    case: Case,
    timing: Timing,
    name: str,
    variant: Variant = NO_CALL,
    error: str | None = None,
) -> Record:
    """The record of one variant before it has been measured."""
    return Record(
        entry=entry,
        case=case.name,
        variant=name,
        mode=case.mode,
        shape=case.shape,
        dtype=str(case.dtype).removeprefix("torch."),
        device=timing.device.type,
        threads=(case.threads or torch.get_num_threads()) if timing.device.type == "cpu" else None,
        flops=variant.flops,
        attention_flops=variant.attention_flops,
        bytes=variant.bytes,
        error=error,
    )


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


def _with_times(
    record: Record, name: str, times: Mapping[str, list[float]], calls: int, baseline: str | None
) -> Record:
    ms = [1e3 * seconds / calls for seconds in times[name]]
    ratio = None
    if baseline is not None and baseline in times:
        pairs = zip(times[baseline], times[name], strict=True)
        ratio = Spread.of([base / seconds for base, seconds in pairs])
    return replace(
        record,
        baseline=baseline if ratio else None,
        calls=calls,
        rounds=len(ms),
        ms=Spread.of(ms),
        ratio=ratio,
    )


def _with_shares(record: Record, ceilings: Ceilings) -> Record:
    """Shares of the ceilings, which are those of one number of threads."""
    if record.ms is None or record.threads != ceilings.threads:
        return record
    matmul = ceilings.matmul_gflops.get(record.dtype)
    seconds = record.ms.median / 1e3
    changes: dict[str, Any] = {}
    if record.flops and matmul:
        changes["share_of_matmul"] = significant(record.flops / seconds / 1e9 / matmul)
    if record.bytes and ceilings.copy_gb_per_s:
        rate = record.bytes / seconds / 1e9
        changes["share_of_copy"] = significant(rate / ceilings.copy_gb_per_s)
    return replace(record, **changes)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
