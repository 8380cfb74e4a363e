"""What was measured, one row for each variant of an entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mbt_fast.profiling.measure import MIB
from mbt_fast.testing.timing import median_and_tails


class Spread(NamedTuple):
    """Median of some values, and between what the middle 60 % of them lie."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(*median_and_tails(values))


@dataclass(frozen=True)
class Row:
    """One variant of an entry.

    Args:
        part: ``"op"``, ``"layer"`` or ``"model"``.
        entry: What is compared: an op, or a batch size.
        variant: A backend or a ``Way``, by name.
        seconds: Of each round; empty if it was not run. Entries are interleaved: the same round of
            another row of the entry was measured next to it.
        batch_size: Clips of a call.
        peak_bytes: Tensors allocated in a call at their peak, with weights and inputs.
        saved_bytes: What autograd keeps for the backward.
        note: What dispatch says of it, or why it was not run.
    """

    part: str
    entry: str
    variant: str
    seconds: tuple[float, ...] = ()
    batch_size: int = 1
    peak_bytes: int | None = None
    saved_bytes: int | None = None
    note: str = ""

    @property
    def ran(self) -> bool:
        """Whether there is a time."""
        return bool(self.seconds)

    @property
    def time(self) -> Spread:
        """Seconds of a call."""
        return Spread.of(self.seconds)

    @property
    def clips_per_second(self) -> float:
        """Throughput at the median time."""
        return self.batch_size / self.time.median

    def times_faster(self, than: "Row") -> Spread:
        """How many clips this does in the time of one of another row, round by round."""
        share = self.batch_size / than.batch_size
        pairs = zip(than.seconds, self.seconds, strict=True)
        return Spread.of([share * theirs / ours for theirs, ours in pairs])

    def as_record(self, baseline: "Row | None") -> dict[str, Any]:
        """As plain data; the baseline is the row that ratios are to."""
        record: dict[str, Any] = {
            "part": self.part,
            "entry": self.entry,
            "variant": self.variant,
            "batch_size": self.batch_size,
            "rounds": len(self.seconds),
            "note": self.note,
        }
        if self.ran:
            time = Spread(*(1e3 * value for value in self.time))
            record |= {f"ms_{name}": value for name, value in _named(time)}
            record["clips_per_second"] = self.clips_per_second
        if self.ran and baseline is not None and baseline.ran:
            times = self.times_faster(baseline)
            record["baseline"] = baseline.variant
            record |= {f"times_faster_{name}": value for name, value in _named(times)}
        for name in ("peak", "saved"):
            size = getattr(self, f"{name}_bytes")
            if size is not None:
                record[f"{name}_mb"] = size / MIB
        return record


def _named(spread: Spread) -> list[tuple[str, float]]:
    return list(zip(("median", "p20", "p80"), spread, strict=True))
