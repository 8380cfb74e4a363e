"""What to take, each choice with what was measured for it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mbt_fast import dispatch
from mbt_fast.bench import ways
from mbt_fast.bench.comparison import Bench
from mbt_fast.bench.models import GROWTH, WAYS
from mbt_fast.bench.rows import Row, Spread
from mbt_fast.bench.ways import Way
from mbt_fast.layers.savings import MEMORIES
from mbt_fast.models import MBTConfig

CLEARLY = 1.03  # times faster; below it the default is kept


@dataclass(frozen=True)
class Suggestion:
    """One choice, what to take, and why."""

    choice: str
    take: str
    reason: str


@dataclass(frozen=True)
class Advice:
    """The way to take, and the reasons."""

    way: Way
    suggestions: list[Suggestion]


class Advisor:
    """Reads the comparison of the ways at one batch size."""

    def __init__(self, bench: Bench, config: MBTConfig) -> None:
        """Take the rows as they are now."""
        self._setting, self._config = bench.setting, config
        self._rows = bench.of("model", WAYS)
        self._usual = ways.usual(bench.setting)
        self._way = self._usual

    def advise(self, compared: list[Way], why_dtype: str) -> Advice:
        """Every choice in turn, of those ways that ran."""
        found = [self._backend(compared), self._dtype(compared, why_dtype)]
        if self._setting.mode == "train":
            found.append(self._memory())
        found += [self._cls_only(), self._capture()]
        return Advice(self._way, found)

    def _backend(self, compared: list[Way]) -> Suggestion:
        taken = dispatch.select(ways.attention_call(self._config, self._setting))
        what = f"auto, which takes {taken} for attention"
        stock = ways.stock(self._setting)
        full = replace(self._usual, memory=stock.memory)
        against = self._compared(full, stock) or self._compared(self._usual, stock)
        if against is None:
            return Suggestion("backend", "auto", "not measured")
        if _clearly(self._compared(stock, full)):
            self._way = replace(self._way, backend="sdpa")
            return Suggestion("backend", "sdpa", f"{_times(self._compared(stock, full))} {what}")
        for way in compared:
            named = way == replace(self._usual, backend=way.backend) and way != self._usual
            times = self._compared(way, self._usual) if named else None
            if _clearly(times):
                self._way = replace(self._way, backend=way.backend)
                return Suggestion("backend", way.backend, f"{_times(times)} {what}")
        return Suggestion("backend", "auto", f"takes {taken} for attention: {_times(against)} sdpa")

    def _dtype(self, compared: list[Way], why: str) -> Suggestion:
        usual = str(self._setting.dtype).removeprefix("torch.")
        for way in compared:
            if way.dtype == self._setting.dtype:
                continue
            other = str(way.dtype).removeprefix("torch.")
            times = self._compared(way, self._usual)
            if _clearly(times):
                self._way = replace(self._way, dtype=way.dtype)
                return Suggestion("dtype", other, f"{_times(times)} {usual}")
            times = self._compared(self._usual, way)
            if times is not None:
                return Suggestion("dtype", usual, f"{_times(times)} {other}; {why}")
        return Suggestion("dtype", usual, why)

    def _memory(self) -> Suggestion:
        """The fastest; of those that are as fast, the one with the lowest peak."""
        modes = {memory: self._row(replace(self._usual, memory=memory)) for memory in MEMORIES}
        ran = {memory: row for memory, row in modes.items() if row is not None}
        if len(ran) < 2:
            return Suggestion("memory", self._usual.memory, "the default; not measured")
        fastest = min(ran.values(), key=lambda row: row.time.median)
        alike = {m: row for m, row in ran.items() if not _clearly(fastest.times_faster(row))}
        take = min(alike, key=lambda memory: alike[memory].peak_bytes or 0)
        self._way = replace(self._way, memory=take)
        said = (
            f"{memory} {row.times_faster(ran[take]).median:.2f} times as fast with "
            f"{(row.peak_bytes or 0) / (ran[take].peak_bytes or 1):.2f} of its peak memory"
            for memory, row in ran.items()
            if memory != take
        )
        return Suggestion("memory", take, "; ".join(said))

    def _cls_only(self) -> Suggestion:
        times = self._compared(replace(self._usual, cls_only=True), self._usual)
        if times is None:
            return Suggestion("cls_only", "off", "the default; not measured")
        if times.low <= 1:
            return Suggestion("cls_only", "off", f"{_times(times)} all rows in the last layer")
        self._way = replace(self._way, cls_only=True)
        return Suggestion("cls_only", "on", f"{_times(times)} all rows in the last layer")

    def _capture(self) -> Suggestion:
        if self._setting.device.type != "cuda":
            return Suggestion("capture", "no", "CUDA graphs need a GPU")
        if self._setting.mode == "train":
            return Suggestion("capture", "no", "model.capture is for inference")
        eager = replace(self._usual, cls_only=True)
        times = self._compared(replace(eager, capture=True), eager)
        if times is None:
            return Suggestion("capture", "no", "not measured")
        if _clearly(times):
            self._way = replace(self._way, capture=True)
            return Suggestion("capture", "yes", f"{_times(times)} without")
        return Suggestion("capture", "no", f"captured it does {times.median:.2f} times as much")

    def _row(self, way: Way) -> Row | None:
        row = self._rows.get(way.name(self._setting))
        return row if row is not None and row.ran else None

    def _compared(self, way: Way, than: Way) -> Spread | None:
        row, other = self._row(way), self._row(than)
        return None if row is None or other is None else row.times_faster(other)


def batch_size(bench: Bench, why_it_ended: str) -> Suggestion:
    """The last batch size that still paid, with its throughput."""
    first = bench.setting.batch_size
    grown = [row for row in bench.rows if row.entry.startswith(GROWTH) and row.ran]
    pairs = list(zip(grown[::2], grown[1::2], strict=True))
    best, gain = None, 1.0
    for smaller, larger in pairs:
        best = best or smaller
        times = larger.times_faster(smaller).median
        if times > 1:
            best, gain = larger, gain * times
    if best is None:
        return Suggestion("batch size", str(first), why_it_ended)
    reason = f"{best.clips_per_second:.3g} clips/s"
    if best.batch_size != first:
        reason += f", {gain:.2f} times those of batch {first}"
    return Suggestion("batch size", str(best.batch_size), f"{reason}; {why_it_ended}")


def verdict_of_auto(rows: Mapping[str, Row], taken: str) -> str:
    """Whether what ``auto`` takes was the fastest here, and if not by how much."""
    ran = {name: row for name, row in rows.items() if row.ran}
    if taken not in ran:
        return f"auto takes {taken}, which was not measured"
    fastest = min(ran, key=lambda name: ran[name].time.median)
    if fastest == taken:
        return f"auto takes {taken}, the fastest here"
    times = ran[fastest].times_faster(ran[taken])
    if times.low <= 1:
        return f"auto takes {taken}; {fastest} is as fast within the spread of the rounds"
    return f"auto takes {taken}, but {fastest} is {times.median:.2f} times as fast here"


def as_code(way: Way) -> str:
    """The lines of Python that take this way."""
    backend = f'.set_backend("{way.backend}")' if way.backend != "auto" else ""
    changes = [f'memory="{way.memory}"'] if way.memory != Way("auto", way.dtype).memory else []
    changes += ["cls_only=True"] * way.cls_only
    savings = f".set_savings({', '.join(changes)})" if changes else ""
    model = f"model = model.to({way.dtype}){backend}{savings}"
    return f"{model}; model = model.capture(inputs)" if way.capture else model


def _clearly(times: Spread | None) -> bool:
    return times is not None and times.median > CLEARLY and times.low > 1


def _times(times: Spread | None) -> str:
    if times is None:
        return "not compared with"
    return f"{times.median:.2f} [{times.low:.2f}-{times.high:.2f}] times as fast as"
