"""The whole model: every sensible way at one batch size, then the fastest at growing ones."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mbt_fast.bench import ways
from mbt_fast.bench.comparison import Bench, Deadline, Run
from mbt_fast.bench.rows import Row
from mbt_fast.bench.ways import Way
from mbt_fast.models import MBT, MBTConfig
from mbt_fast.profiling.machine import free_bytes
from mbt_fast.profiling.measure import Setting, build_models, random_inputs, step_of
from mbt_fast.testing import peak_memory

WAYS, GROWTH = "ways", "batch size"
RISING = 1.03  # times the throughput of half the batch size; less counts as none
ROOM = 0.8  # of the free memory


class Models:
    """The model in each dtype that is asked for, built once."""

    def __init__(self, config: MBTConfig, setting: Setting) -> None:
        """Build nothing yet."""
        self.config, self.setting = config, setting
        self._models: dict[torch.dtype, MBT] = {}

    def of(self, dtype: torch.dtype) -> MBT:
        """The model, with random weights."""
        if dtype not in self._models:
            setting = replace(self.setting, dtype=dtype)
            (self._models[dtype],) = build_models([self.config], setting)
        return self._models[dtype]

    def weight_bytes(self, way: Way) -> int:
        """Memory that does not grow with the batch."""
        return sum(p.numel() * p.element_size() for p in self.of(way.dtype).parameters())

    def call(self, way: Way, batch_size: int) -> "Call":
        """What is timed."""
        return Call(self, way, replace(self.setting, dtype=way.dtype, batch_size=batch_size))


class Call:
    """A forward or a training step of one way at one batch size; inputs are drawn when it runs."""

    def __init__(self, models: Models, way: Way, setting: Setting) -> None:
        """Allocate nothing yet."""
        self._models, self._way, self._setting = models, way, setting
        self._run: Run | None = None
        self.peak_bytes: int | None = None

    def __call__(self) -> None:
        """Run; the first time the peak of memory is counted."""
        model = self._models.of(self._way.dtype)
        model.set_backend(self._way.backend)
        model.set_savings(memory=self._way.memory, cls_only=self._way.cls_only)
        if self._run is not None:
            self._run()
            return
        inputs = random_inputs(model.config, self._setting)
        held = [*model.parameters(), *inputs.values()]
        resting = sum(tensor.numel() * tensor.element_size() for tensor in held)

        def first() -> None:
            self._run = self._start(model, inputs)
            self._run()

        self.peak_bytes = resting + peak_memory(first, self._setting.device)

    def _start(self, model: MBT, inputs: Mapping[str, Tensor]) -> Run:
        """What further calls run; a capture allocates what its replays use."""
        if not self._way.capture:
            return step_of(model, inputs, self._setting)
        captured = model.capture(inputs)
        return lambda: captured(inputs)


def measure_ways(bench: Bench, models: Models, deadline: Deadline, *, any_dtype: bool) -> list[Way]:
    """Compare the ways at the first batch size; returns them, stock PyTorch first."""
    compared = ways.of_model(models.config, bench.setting, any_dtype=any_dtype)
    batch_size = bench.setting.batch_size
    calls = {way.name(bench.setting): models.call(way, batch_size) for way in compared}
    _compare(bench, WAYS, calls, dict.fromkeys(calls, batch_size), deadline)
    return compared


def measure_growth(
    bench: Bench, models: Models, way: Way, sizes: Iterable[int], deadline: Deadline
) -> str:
    """Throughput of one way at batch sizes that follow the first; returns why it ended.

    Each size is timed side by side with the one before.
    """
    before = bench.setting.batch_size
    row = bench.of("model", WAYS)[ways.usual(bench.setting).name(bench.setting)]
    for size in sizes:
        if not row.ran:
            return f"batch {size} was not tried: {row.note.removeprefix('not run: ')}"
        seconds = row.time.median * size / before
        if deadline.left() < 3 * (seconds + row.time.median):
            return f"batch {size} was not tried: --seconds were over"
        beyond_weights = (row.peak_bytes or 0) - models.weight_bytes(way)
        if beyond_weights * size / before > ROOM * free_bytes(bench.setting.device):
            return f"batch {size} was not tried: it would take most of the free memory"
        batches = {f"batch {count}": count for count in (before, size)}
        calls = {name: models.call(way, count) for name, count in batches.items()}
        _compare(bench, f"{GROWTH} {before} and {size}", calls, batches, deadline)
        smaller, larger = bench.rows[-2:]
        if not larger.ran:
            return f"batch {size}: {larger.note}"
        if larger.times_faster(smaller).median < RISING:
            return f"batch {size} is no more than {100 * (RISING - 1):.0f} % better than {before}"
        before, row = size, larger
    return f"batch {before} was the largest asked for"


def doubling(first: int) -> Iterator[int]:
    """Batch sizes after the first, without end."""
    while True:
        first *= 2
        yield first


def _compare(
    bench: Bench,
    entry: str,
    calls: Mapping[str, Call],
    batches: Mapping[str, int],
    deadline: Deadline,
) -> None:
    rows = {name: Row("model", entry, name, batch_size=size) for name, size in batches.items()}
    first = len(bench.rows)
    try:
        bench.compare(rows, calls, deadline)
    finally:
        for index, row in enumerate(bench.rows[first:], first):
            bench.rows[index] = replace(row, peak_bytes=calls[row.variant].peak_bytes)
