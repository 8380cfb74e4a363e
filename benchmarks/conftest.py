"""What every benchmark shares: options, threads, what a record says of the machine, and ``race``.

``race`` compares results before it times anything: ours and every baseline must be as close to
float64 as the first baseline is, by the tolerance rule of ``mbt_fast.testing``. Then each round of
ours stands next to one round of every baseline, so that a drift of the machine hits all alike.
"""

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.calls import DEVICE, Call
from benchmarks.machine import facts
from benchmarks.peers import Peer
from mbt_fast.dispatch import BackendError
from mbt_fast.profiling.machine import dtype_name
from mbt_fast.testing import assert_close_to_exact, interleaved_times, peak_memory

ALL_THREADS = torch.get_num_threads()
WARM_UPS, LEAST_ROUNDS, MOST_ROUNDS = 2, 5, 2000


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--seconds`` and ``--tiny``."""
    group = parser.getgroup("mbt_fast")
    group.addoption("--seconds", type=float, default=1.0, help="time of a small case; others scale")
    group.addoption("--tiny", action="store_true", help="tiny shapes; so with --benchmark-disable")


class DeviceClock:
    """Seconds that have passed on the GPU; asking waits until its work is done."""

    def __init__(self) -> None:
        """Start at 0."""
        self._last, self._seconds = self._now(), 0.0

    def __call__(self) -> float:
        """Add the time since the last call: an interval from 0 on would lose its digits."""
        last, self._last = self._last, self._now()
        self._seconds += last.elapsed_time(self._last) / 1e3
        return self._seconds

    def _now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return event


@cache
def clock() -> Callable[[], float]:
    """The clock of the device."""
    return DeviceClock() if DEVICE.type == "cuda" else time.perf_counter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pytest-benchmark use the same clock as ``race``."""
    for item in items:
        if "benchmark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=clock()))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Iterator[None]:
    """Skip what the machine has no kernels for, with the reasons."""
    try:
        return (yield)
    except BackendError as error:
        pytest.skip(f"ours does not run here: {error}")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """What ``mbt-fast info`` says, instead of the host's name and the CPU's flags."""
    for key in ("node", "cpu", "python_build"):
        machine_info.pop(key, None)
    machine_info |= facts()


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """``MBT_FAST_COMMIT`` names the commit where there is no checkout."""
    if "MBT_FAST_COMMIT" in os.environ:
        commit_info |= {"id": os.environ["MBT_FAST_COMMIT"]}


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add the ceilings; leave out the single rounds, which make up most of a file."""
    output_json["ceilings"] = config.stash.get(CEILINGS, {})
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)


CEILINGS = pytest.StashKey[dict[str, dict[str, float]]]()
RATIOS = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A line for each benchmark, above pytest-benchmark's table of times."""
    if RATIOS in config.stash:
        terminalreporter.section("times as fast as each baseline")
        for line in config.stash[RATIOS]:
            terminalreporter.write_line(line)


def measure_ceilings(size: int, seconds: float) -> dict[str, float]:
    """What torch reaches: GFLOP/s of its square matrix product by dtype, GB/s of its copy."""
    source = torch.ones(16 * size, size, device=DEVICE)
    calls: dict[str, Call] = {"copy": partial(torch.empty_like(source).copy_, source)}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(size, size, device=DEVICE).to(dtype)
        calls[dtype_name(dtype)] = partial(torch.matmul, a, a)
    times = interleaved_times(calls, DEVICE, seconds=seconds, min_rounds=LEAST_ROUNDS).seconds
    done = {"copy": 2 * source.nbytes}
    return {name: 1e-9 * done.get(name, 2 * size**3) / min(of) for name, of in times.items()}


@pytest.fixture(params=sorted({1, ALL_THREADS}) if DEVICE.type == "cpu" else [ALL_THREADS])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread, then all."""
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(ALL_THREADS)


@pytest.fixture
def race(benchmark: Any, request: pytest.FixtureRequest) -> Iterator["Race"]:
    """See ``Race``; a benchmark may change the number of threads."""
    yield Race(benchmark, request.config)
    torch.set_num_threads(ALL_THREADS)


class Race:
    """Check, time in turns, and keep times and ratios in ``extra_info``."""

    def __init__(self, benchmark: Any, config: pytest.Config) -> None:
        """Seed, so that every process has the same inputs."""
        torch.manual_seed(0)
        self._benchmark, self._config = benchmark, config
        self.tiny = config.getoption("--tiny") or not benchmark.enabled

    def __call__(
        self,
        ours: Call,
        baselines: Mapping[str, Call],
        *,
        exact: Call,
        unequal: Mapping[str, Call] | None = None,
        view: Callable[[Any], Any] = lambda result: result,
        calls: int = 1,
        scale: float = 1.0,
        flops: int | None = None,
        moved: int | None = None,
        graph: bool = False,
        memory: bool = False,
        **facts: Any,
    ) -> None:
        """Race ``ours`` against the first of ``baselines`` and all others.

        Args:
            ours: What is measured; returns tensors, in any structure.
            baselines: What returns the same; ratios are those to the first one, which must run. The
                others may fail, be absent or be wrong: they are then not timed, and the record says
                why.
            exact: The same in float64, of the same rounded inputs.
            unequal: What serves the same purpose but computes something else; timed only.
            view: Gives the result of ``ours`` the structure of the others'.
            calls: How many calls one call of these functions stands for.
            scale: Of ``--seconds``, for cases that take longer.
            flops: Of one call of ours.
            moved: Bytes that one call has to read and write.
            graph: On a GPU, time replays of CUDA graphs, so that the host's cost does not count.
            memory: Measure the peaks as well.
            **facts: What the record should say of the case; ``dtype`` and ``shape`` in any case.
        """
        not_run = self._check(lambda: view(ours()), baselines, exact, unequal or {})
        everyone = {**baselines, **(unequal or {})}
        others = {name: run for name, run in everyone.items() if name not in not_run}
        info = self._benchmark.extra_info
        info |= {"device": DEVICE.type, "threads": torch.get_num_threads(), "calls": calls, **facts}
        info |= {"baseline": next(iter(others)), "not_run": not_run}
        if memory:
            here = {n: run for n, run in others.items() if not isinstance(run, Peer)}
            peaks = {n: peak_memory(run, DEVICE) for n, run in {"ours": ours, **here}.items()}
            info["peak_memory"] = peaks
        if graph and DEVICE.type == "cuda":
            ours, others = captured(ours), {name: captured(run) for name, run in others.items()}
        seconds = self._time(ours, others, scale)
        if seconds:
            info |= summarise(seconds, calls)
            best = info["ms"]["ours"]["quick"] / 1e3
            info |= {"flops": flops, "gflops": flops and flops / best / 1e9}
            info |= {"bytes": moved, "gb_per_s": moved and moved / best / 1e9}
            self._keep_ceilings()
            ratios = (f"{name} {of['quick']:.2f}" for name, of in info["times_faster"].items())
            line = f"{self._benchmark.name}, {torch.get_num_threads()} threads: {', '.join(ratios)}"
            self._config.stash.setdefault(RATIOS, []).append(line)

    def _check(
        self,
        ours: Call,
        baselines: Mapping[str, Call],
        exact: Call,
        unequal: Mapping[str, Call],
    ) -> dict[str, str]:
        """Refuse a wrong result of ours; say of each other call why it cannot be timed."""
        first, *rest = baselines
        threads = torch.get_num_threads()
        torch.set_num_threads(ALL_THREADS)
        eager, wide = tree_leaves(baselines[first]()), tree_leaves(exact())
        assert_all_close(tree_leaves(ours()), eager, wide)
        not_run = {}
        for name, run in {**{name: baselines[name] for name in rest}, **unequal}.items():
            try:
                result = tree_leaves(run())
                if name in baselines:
                    assert_all_close(result, eager, wide)
            except Exception as error:  # a baseline may fail in any way, and the others go on
                not_run[name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        torch.set_num_threads(threads)
        return not_run

    def _time(self, ours: Call, others: Mapping[str, Call], scale: float) -> dict[str, list[float]]:
        """Seconds of every round; nothing with ``--benchmark-disable``."""
        now = clock()
        round_takes = 0.0
        for _ in range(1 if self.tiny else WARM_UPS):  # the check was the first call
            start = now()
            for run in (ours, *others.values()):
                run()
            round_takes = now() - start
            if round_takes > 0.1:
                break
        times: dict[str, list[float]] = {name: [] for name in others}
        shuffled = random.Random(0)

        def others_once() -> None:
            for name in shuffled.sample(list(others), len(others)):
                start = now()
                others[name]()
                times[name].append(elapsed(others[name], now() - start))

        fitting = int(scale * self._config.getoption("--seconds") / round_takes)
        rounds = 2 if self.tiny else min(MOST_ROUNDS, max(LEAST_ROUNDS, fitting))
        self._benchmark.pedantic(ours, setup=others_once, rounds=rounds)
        if not self._benchmark.enabled:
            return {}
        return {"ours": list(self._benchmark.stats.stats.data), **times}

    def _keep_ceilings(self) -> None:
        """Measure them once for each number of threads."""
        stash, threads = self._config.stash, torch.get_num_threads()
        found = stash.setdefault(CEILINGS, {})
        if str(threads) not in found:
            size = 64 if self.tiny else 2048 if DEVICE.type == "cpu" else 8192
            found[str(threads)] = measure_ceilings(size, 0.0 if self.tiny else 3.0)


def elapsed(run: Call, seconds: float) -> float:
    """Seconds of a call: by its own clock if it ran in another process."""
    return run.seconds if isinstance(run, Peer) else seconds


def assert_all_close(actual: list[Tensor], eager: list[Tensor], exact: list[Tensor]) -> None:
    """The tolerance rule, tensor by tensor."""
    for index, three in enumerate(zip(actual, eager, exact, strict=True)):
        assert_close_to_exact(*three, name=f"result {index}")


def captured(run: Call) -> Call:
    """The call as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def quickest_fifth(times: list[float]) -> float:
    """Mean of the quickest fifth: neighbours on a host only ever slow a call down."""
    count = max(1, len(times) // 5)
    return sum(sorted(times)[:count]) / count


def summarise(seconds: Mapping[str, list[float]], calls: int) -> dict[str, Any]:
    """Milliseconds of one call, and how many times faster ours is, by two statistics."""
    ms = {
        name: {"quick": 1e3 * quickest_fifth(t) / calls, "median": 1e3 * median(t) / calls}
        for name, t in seconds.items()
    }
    times_faster = {
        name: {key: value / ms["ours"][key] for key, value in of.items()}
        for name, of in ms.items()
        if name != "ours"
    }
    return {"ms": ms, "times_faster": times_faster, "rounds": len(seconds["ours"])}
