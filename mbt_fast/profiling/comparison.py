"""Comparisons of ``mbt-fast bench``: rows of variants, the fastest of them, as text and as JSON."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mbt_fast.profiling import tables
from mbt_fast.profiling.measurement import ENDS, MIB, Measurement, measure
from mbt_fast.profiling.runs import Setting
from mbt_fast.profiling.tables import ABSENT, significant, with_tails
from mbt_fast.profiling.timing import Deadline, Run, median_and_tails

ALIKE = 1.03  # up to this many times the least time counts as fastest too


@dataclass(frozen=True)
class Row:
    """One variant of a comparison.

    Args:
        level: ``"op"``, ``"layer"`` or ``"model"``.
        entry: What is compared.
        variant: Its name, which begins with the backend.
        batch_size: Clips of a call.
        call: What is timed; ``None`` if it cannot run, and afterwards, to free its memory.
        measurement: Empty if it was not run.
        resting_bytes: Memory that exists before the call and is counted with it.
        saved_bytes: What autograd keeps for the backward.
        note: What dispatch says of it, or why it was not run.
    """

    level: str
    entry: str
    variant: str
    batch_size: int
    call: Run | None = None
    measurement: Measurement = field(default_factory=Measurement)
    resting_bytes: int = 0
    saved_bytes: int | None = None
    note: str = ""

    @property
    def ran(self) -> bool:
        """Whether there is a time."""
        return bool(self.measurement.seconds)

    @property
    def seconds_per_clip(self) -> float:
        """At the median time."""
        return self.measurement.median / self.batch_size

    @property
    def peak_bytes(self) -> int | None:
        """Of the call, with what rests."""
        peak = self.measurement.peak_bytes
        return None if peak is None else self.resting_bytes + peak

    def times_faster(self, than: "Row") -> tuple[float, float, float]:
        """Clips in the time of one clip of another row, round by round: median, p20, p80."""
        share = self.batch_size / than.batch_size
        pairs = zip(than.measurement.seconds, self.measurement.seconds, strict=False)
        return median_and_tails([share * theirs / ours for theirs, ours in pairs])

    def as_record(self, rows: Sequence["Row"]) -> dict[str, Any]:
        """As plain data, compared with the first of the rows of its comparison."""
        record: dict[str, Any] = {
            "part": self.level,
            "entry": self.entry,
            "variant": self.variant,
            "batch_size": self.batch_size,
            "rounds": len(self.measurement.seconds),
            "note": self.note,
        }
        if self.ran:
            latencies = self.measurement.latencies()
            record |= {f"ms_{end}": latencies[f"latency_ms_{end}"] for end in ENDS}
            record["clips_per_second"] = 1 / self.seconds_per_clip
            record["fastest"] = self in fastest(rows)
        if self.ran and rows[0].ran:
            times = zip(ENDS, self.times_faster(rows[0]), strict=True)
            record |= {f"times_faster_{end}": value for end, value in times}
            record["baseline"] = rows[0].variant
        sizes = {"peak_mb": self.peak_bytes, "saved_mb": self.saved_bytes}
        return record | {key: size / MIB for key, size in sizes.items() if size is not None}


def fastest(rows: Iterable[Row]) -> list[Row]:
    """The rows with the least time per clip, within ``ALIKE``; the very fastest first."""
    ran = sorted((row for row in rows if row.ran), key=lambda row: row.seconds_per_clip)
    return [row for row in ran if row.seconds_per_clip <= ALIKE * ran[0].seconds_per_clip]


@dataclass
class Comparisons:
    """All comparisons of a run, complete or cut short.

    Args:
        setting: How models are run; the first batch size.
        on_call: Called after each call.
        rows: By level and entry; the baseline is the first.
        taken: By op, the backend that ``"auto"`` takes.
        cut_short: Why the rest of the run was left out; empty if none was.
    """

    setting: Setting
    on_call: Callable[[], object] = lambda: None
    rows: dict[tuple[str, str], list[Row]] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)
    cut_short: str = ""

    def add(self, rows: Sequence[Row], deadline: Deadline) -> None:
        """Measure the rows that have a call, and keep all.

        Raises:
            KeyboardInterrupt: Pressed in the meantime; what was measured is kept.
        """
        calls = {row.variant: row.call for row in rows if row.call is not None}
        # Backends of an op may differ widely, variants of a layer or a model do not. Where the time
        # is short, one round of each says more than several of the first.
        alike = rows[0].level != "op"
        outcome = measure(
            calls,
            self.setting.device,
            deadline,
            costs={row.variant: float(row.batch_size) for row in rows} if alike else None,
            min_rounds=1,
            may_be_refused=True,
            on_call=self.on_call,
        )
        found = []
        for row in rows:
            measurement = outcome.measured.get(row.variant, Measurement())
            backend = row.variant.split(",")[0]
            why_not = verdicts_in(measurement.why_not).get(backend, measurement.why_not)
            note = why_not or row.note
            found.append(replace(row, call=None, measurement=measurement, note=note))
        self.rows[rows[0].level, rows[0].entry] = found
        if outcome.interrupted:
            raise KeyboardInterrupt

    def of(self, level: str, entry: str) -> list[Row]:
        """The rows of a comparison; none if it did not take place."""
        return self.rows.get((level, entry), [])

    def records(self) -> list[dict[str, Any]]:
        """Every row as plain data."""
        return [row.as_record(rows) for rows in self.rows.values() for row in rows]

    def verdicts(self) -> dict[str, str]:
        """By op: what ``"auto"`` takes, and whether that was the fastest."""
        return {op: _verdict(self.of("op", op), taken) for op, taken in self.taken.items()}

    def text(self) -> str:
        """A table for each comparison, with the fastest marked. Needs the package ``tabulate``."""
        verdicts = self.verdicts()
        blocks = []
        for (level, entry), rows in self.rows.items():
            not_run = [f"{row.variant}: {row.note}" for row in rows if not row.ran]
            verdict = [verdicts[entry]] if entry in verdicts else []
            lines = [f"{level}: {entry}", _table(rows), *not_run, *verdict]
            blocks.append("\n".join(filter(None, lines)))
        return "\n\n".join(blocks)


def verdicts_in(message: str) -> dict[str, str]:
    """By backend what the table in a ``BackendError`` says; empty for another message."""
    return dict(line.split(maxsplit=1) for line in message.splitlines()[1:])


def _verdict(rows: Sequence[Row], taken: str) -> str:
    ran = {row.variant: row for row in rows if row.ran}
    if taken not in ran or len(ran) == 1:
        return f"auto takes {taken}; nothing was compared with it"
    best = fastest(rows)
    if ran[taken] in best:
        return f"auto takes {taken}, the fastest here"
    times = best[0].times_faster(ran[taken])[0]
    return f"auto takes {taken}, but {best[0].variant} is {times:.2f} times as fast here"


def _table(rows: Sequence[Row]) -> str:
    """The rows that ran, compared with the first."""
    best, of_model = fastest(rows), rows[0].level == "model"
    columns: dict[str, Callable[[Row], str]] = {
        "": lambda row: row.variant,
        "ms [p20-p80]": lambda row: _milliseconds(row.measurement.seconds),
        f"times as fast as {rows[0].variant}": lambda row: times_as_fast(row, rows[0]),
        "clips/s": lambda row: significant(1 / row.seconds_per_clip) if of_model else "",
        "rounds": lambda row: str(len(row.measurement.seconds)),
        "peak MB": lambda row: _megabytes(row.peak_bytes),
        "kept MB": lambda row: _megabytes(row.saved_bytes),
        " ": lambda row: "fastest" if row in best else "",
        "dispatch": lambda row: row.note,
    }
    ran = [row for row in rows if row.ran]
    return tables.text(*tables.cells(ran, columns), left=("", " ", "dispatch"))


def _milliseconds(seconds: Sequence[float]) -> str:
    return with_tails([1e3 * end for end in median_and_tails(seconds)])


def times_as_fast(row: Row, baseline: Row) -> str:
    """``1.82 [1.80-1.83]``."""
    if not (row.ran and baseline.ran):
        return ABSENT
    return with_tails(row.times_faster(baseline), "{:.2f}".format)


def _megabytes(count: int | None) -> str:
    return "" if count is None else significant(count / MIB)
