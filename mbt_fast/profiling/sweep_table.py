"""The table of ``mbt-fast profile``, and what of it lies within the noise."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, pairwise
from typing import Any

from mbt_fast.profiling import tables
from mbt_fast.profiling.measurement import ENDS
from mbt_fast.profiling.sweep import Record
from mbt_fast.profiling.tables import ABSENT, significant, with_tails
from mbt_fast.profiling.timing import interval_of_median

UNITS = "GFLOPs per clip, 2 per multiply-add; the total includes stem and head."
MACS = "GMACs per clip, 1 per multiply-add; the total includes stem and head."
RATIOS = "Ratios are to vanilla fusion with own weights at the same fusion layer L_f."
TIMES = (
    "Times are means of the quickest fifth of the rounds, because others on a machine only slow a "
    "call down."
)
ENOUGH_ROUNDS = 3  # of fewer nobody can tell their noise
NOISE = (
    "~ marks a time ratio within the noise: the ratios of single rounds are not surely on one side "
    f"of 1, or there are fewer than {ENOUGH_ROUNDS}."
)


def series_name(record: Mapping[str, Any]) -> str:
    """What a line of the plots is called; records that differ in the fusion layer share it."""
    if record["fusion"] == "bottleneck":
        shared = ", shared weights" if record["share_encoder"] else ""
        return f"bottleneck (B = {record['n_bottlenecks']}{shared})"
    return f"{record['fusion']} ({'shared' if record['share_encoder'] else 'own'} weights)"


def table(
    records: Sequence[Record], *, official: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Headers and cells; columns without a value are left out.

    Args:
        records: Of a profile.
        official: Whether to show what the official code spends.
    """
    vanilla = {
        r["fusion_layer"]: r for r in records if r["fusion"] == "vanilla" and not r["share_encoder"]
    }

    def ratio(record: Record, key: str, digits: int) -> str:
        base = vanilla.get(record["fusion_layer"], {}).get(key)
        value = record[key]
        return f"{value / base:.{digits}f}" if base and value is not None else ABSENT

    def time_ratio(record: Record) -> str:
        said, base = ratio(record, "latency_ms_quick", 2), vanilla.get(record["fusion_layer"])
        if base is None or said == ABSENT:
            return said
        is_base = record["latency_ms_rounds"] == base["latency_ms_rounds"]
        return said if is_base or differs(record, base) else f"~{said}"

    columns: dict[str, Callable[[Record], str]] = {
        "fusion": series_name,
        "L_f": lambda record: str(record["fusion_layer"]),
        "linear\nGFLOPs": lambda record: _gflops(record["gflops_linear"]),
        "attention\nGFLOPs": lambda record: _gflops(record["gflops_attention"]),
        "total\nGFLOPs": lambda record: _gflops(record["gflops"]),
        "total\nratio": partial(ratio, key="gflops", digits=3),
        "official\ncode": lambda r: _gflops(r["gflops_official"]) if official else ABSENT,
        "ms": lambda record: significant(record["latency_ms_quick"]),
        "time\nratio": time_ratio,
        "median ms\n[p20-p80]": lambda r: with_tails([r[f"latency_ms_{end}"] for end in ENDS]),
        "peak\nMB": lambda record: significant(record["peak_memory_mb"]),
        "clips/s": lambda record: significant(record["clips_per_second"]),
    }
    return tables.cells(records, columns)


def _gflops(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else significant(value)


def text(records: Sequence[Record], *, macs: bool = False) -> str:
    """The table for a terminal. Needs the package ``tabulate``.

    Args:
        records: Of a profile.
        macs: Count a multiply-add as one, not two.
    """
    if macs:
        records = [
            {k: v / 2 if k.startswith("gflops") else v for k, v in r.items()} for r in records
        ]
    headers, rows = table(records)
    headers = [header.replace("GFLOPs", "GMACs") if macs else header for header in headers]
    body = tables.text(headers, rows, left=["fusion"])
    return "\n".join([body, "", MACS if macs else UNITS, RATIOS, *notes(records)])


def differs(record: Record, other: Record) -> bool:
    """Whether two times differ by more than the noise of their rounds.

    They do where the median of their ratios, round by round, lies on one side of 1.
    """
    ratios = [
        ours / theirs
        for ours, theirs in zip(
            record["latency_ms_rounds"], other["latency_ms_rounds"], strict=False
        )
    ]
    if len(ratios) < ENOUGH_ROUNDS:
        return False
    low, high = interval_of_median(ratios)
    return high < 1 or low > 1


def notes(records: Sequence[Record]) -> list[str]:
    """Under the table: what its times mean, which of them are alike, and what was not measured."""
    said = []
    if any(record["rounds"] for record in records):
        alike = "; ".join(_alike(records))
        said += [TIMES, NOISE]
        said += [f"Within the noise of one another: {alike}."] if alike else []
    reasons = dict.fromkeys(record["why_not"] for record in records if record["why_not"])
    for reason in reasons:
        models = [record for record in records if record["why_not"] == reason]
        places = "; ".join(
            f"{name} at L_f {', '.join(str(r['fusion_layer']) for r in found)}"
            for name, found in groupby(models, series_name)
        )
        said.append(f"{places}: {reason}.")
    return said


def _alike(records: Sequence[Record]) -> Iterator[str]:
    """Neighbouring fusion layers of one fusion whose times do not differ."""
    for name, found in groupby(records, series_name):
        measured = [record for record in found if record["rounds"]]
        for first, second in pairwise(sorted(measured, key=lambda r: r["fusion_layer"])):
            if not differs(first, second):
                yield f"{name} at L_f {first['fusion_layer']} and {second['fusion_layer']}"
