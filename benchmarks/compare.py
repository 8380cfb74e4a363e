"""Two documents of one entry side by side: ratios, because times depend on the day."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.quiet import ROUNDS_TO_BE_SURE
from benchmarks.record import Document, Record, load

NOISE = 0.05  # two runs on a machine of one's own differ by less, where both are sure
# Relative standard error of a ratio up to which a run is sure of it. NOISE is three and a half
# times that of the difference of two such.
SURE = 0.01
COUNTED = ("flops", "launches", "saved_memory")


class Change(NamedTuple):
    """One record, before and now; ``what`` says which figure."""

    record: Record
    what: str
    before: float
    now: float
    sure: bool = True  # both of them

    @property
    def share(self) -> float:
        """By how much the figure grew."""
        return self.now / self.before - 1

    def beyond(self, noise: float) -> bool:
        """Whether it says anything; what is counted is exact."""
        return abs(self.share) > (noise if self.what == "ratio" else 0)

    def line(self, noise: float = NOISE) -> str:
        """As text, marked if it says anything."""
        r = self.record
        mark = "!" if self.beyond(noise) else " "
        head = f"{mark} {r.entry:<12} {r.case:<22} {r.mode:<9} {r.dtype:<9} {r.variant:<24}"
        return f"{head} {self.what:<12} {self.before:10.4g} -> {self.now:10.4g}  {self.share:+.1%}"


def compare(now: Document, before: Document) -> list[Change]:
    """Every figure that both have."""
    return list(_changes(now, before))


def _changes(now: Document, before: Document) -> Iterator[Change]:
    known = {(record.group, record.variant): record for record in before.records}
    for record in now.records:
        old = known.get((record.group, record.variant))
        if old is None:
            continue
        if record.ratio and old.ratio and record.variant != record.baseline:
            both, sure = (old.ratio, record.ratio), is_sure(old) and is_sure(record)
            quiet = all(ratio.quiet is not None for ratio in both)  # the same of both runs
            first, second = (ratio.reported if quiet else ratio.median for ratio in both)
            yield Change(record, "ratio", first, second, sure)
        for name in COUNTED:
            first, second = getattr(old, name), getattr(record, name)
            if first and second and (first != second):
                yield Change(record, name, first, second)


def is_sure(record: Record) -> bool:
    """Whether the passes of a run agree on the ratio; one pass or few rounds do not tell."""
    if record.ratio is None or record.uncertainty is None or record.uncertainty > SURE:
        return False
    return record.ratio.quiet is None or record.rounds >= ROUNDS_TO_BE_SURE


def earlier(path: Path, entry: str) -> Document | None:
    """The document of an entry in a folder of results, or the file itself, if there is one."""
    file = path / f"{entry}.json" if path.is_dir() else path
    return load(file) if file.exists() else None
