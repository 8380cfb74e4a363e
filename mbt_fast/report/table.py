"""The records of a profile as a table: cells for any output, and plain text."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mbt_fast.report.records import (
    SETTING,
    Record,
    check_records,
    describe,
    is_pairwise,
    series_name,
    sort_key,
)

ABSENT = "-"
GFLOPS, GMACS = "GFLOPs", "GMACs"


class Ratio(NamedTuple):
    """Cost over that of pairwise attention at the same fusion layer; ``None`` where unknown."""

    gflops: float | None
    latency: float | None


class Table(NamedTuple):
    """Cells as text. A header may have two lines; ``rows`` are sorted by series and layer."""

    headers: list[str]
    rows: list[list[str]]


class _Column(NamedTuple):
    header: str
    cell: Callable[[Record, Ratio], str]


def ratio_to_vanilla(records: Sequence[Record]) -> list[Ratio]:
    """Compare each record with vanilla fusion with own weights (Eq. 5-6) at the same fusion layer.

    The baseline ran in the same mode with the same batch size, device and dtype, and on the same
    backend where it did; if it ran on one other backend only, on that one.

    Returns:
        One entry per record, in their order.
    """
    baselines: dict[tuple[object, ...], list[Record]] = {}
    for record in filter(is_pairwise, records):
        baselines.setdefault(_place(record), []).append(record)
    return [_ratio(record, baselines.get(_place(record), [])) for record in records]


def table_cells(records: Sequence[Record], *, with_official: bool = True) -> Table:
    """Headers and cells. Columns without a value, and settings all records share, are left out.

    Args:
        records: The records of a profile.
        with_official: Whether to show what the official code spends, where that differs.

    Raises:
        ValueError: There is no record, or one lacks a key.
    """
    check_records(records)
    entries = list(zip(records, ratio_to_vanilla(records), strict=True))
    entries.sort(key=lambda entry: sort_key(entry[0]))
    official = [_OFFICIAL] if with_official else []
    columns = [*_NAMES, *_varying(records), *_FLOPS, *official, *_MEASURED]
    cells = [[column.cell(*entry) for entry in entries] for column in columns]
    kept = [index for index, column in enumerate(cells) if set(column) != {ABSENT}]
    rows = [[cells[index][row] for index in kept] for row in range(len(entries))]
    return Table([columns[index].header for index in kept], rows)


def shared_setting(records: Sequence[Record]) -> str:
    """What all records have in common and the table therefore does not repeat."""
    common = [key for key in (*SETTING, "backend") if not _differ(records, key)]
    return ", ".join(describe(records[0], common))


def format_table(records: Sequence[Record], *, macs: bool = False) -> str:
    """The records as plain text, for a terminal. Needs the package ``tabulate``.

    Args:
        records: What ``mbt-fast profile --json`` writes; latency, memory and clips per second may
            be ``None``.
        macs: Count a multiply-add as one, not two.

    Returns:
        Lines without a trailing newline: what the records share, the table, and its units.

    Raises:
        ValueError: There is no record, or one lacks a key.
    """
    from tabulate import tabulate

    unit = GMACS if macs else GFLOPS
    if macs:
        records = [_halved(record) for record in records]
    table = table_cells(records, with_official=False)
    body = tabulate(
        table.rows,
        headers=[header.replace(GFLOPS, unit) for header in table.headers],
        colalign=["left", *["right"] * (len(table.headers) - 1)],
        disable_numparse=True,
    )
    return "\n".join([shared_setting(records), "", body, "", units_note(unit)]).strip("\n")


def units_note(unit: str = GFLOPS) -> str:
    """What the table counts, and what its ratios are to."""
    per_multiply_add = 1 if unit == GMACS else 2
    return (
        f"{unit} per clip, {per_multiply_add} per multiply-add; the total includes stem and head.\n"
        "Ratios are to vanilla fusion with own weights at the same fusion layer L_f."
    )


def _halved(record: Record) -> Record:
    return {k: v / 2 if k.startswith("gflops") and v else v for k, v in record.items()}


def _place(record: Record) -> tuple[object, ...]:
    return (*(record[key] for key in SETTING), record["fusion_layer"])


def _ratio(record: Record, baselines: Sequence[Record]) -> Ratio:
    if not baselines:
        return Ratio(None, None)
    same_backend = [base for base in baselines if base["backend"] == record["backend"]]
    comparable = same_backend or baselines
    latency = None
    if len({base["backend"] for base in comparable}) == 1:
        latency = _quotient(record, comparable[0], "latency_ms_median")
    return Ratio(_quotient(record, baselines[0], "gflops"), latency)


def _quotient(record: Record, baseline: Record, key: str) -> float | None:
    value, base = record.get(key), baseline.get(key)
    return value / base if value is not None and base else None


def _differ(records: Sequence[Record], key: str) -> bool:
    return len({record[key] for record in records}) > 1


def _varying(records: Sequence[Record]) -> list[_Column]:
    def column(key: str) -> _Column:
        return _Column(key.removesuffix("_size"), lambda record, _: str(record[key]))

    return [column(key) for key in (*SETTING, "backend") if _differ(records, key)]


def _number(key: str, digits: int) -> Callable[[Record, Ratio], str]:
    def cell(record: Record, _: Ratio) -> str:
        value = record.get(key)
        return ABSENT if value is None else amount(value, digits)

    return cell


def amount(value: float, digits: int = 2) -> str:
    """Digits after the point: so many, or as many as three significant ones take below one."""
    if 0 < value < 1:
        digits = max(digits, 2 - math.floor(math.log10(value)))
    return f"{value:.{digits}f}"


def milliseconds(value: float) -> str:
    """Three significant digits, or all before the point; never an exponent."""
    return amount(value, 3 - len(str(int(value))) if value < 100 else 0)


def _times(ratio: float | None, digits: int) -> str:
    return ABSENT if ratio is None else f"{ratio:.{digits}f}"


def _n_bottlenecks(record: Record, _: Ratio) -> str:
    return str(record["n_bottlenecks"]) if record["fusion"] == "bottleneck" else ABSENT


def _official(record: Record, _: Ratio) -> str:
    official = record.get("gflops_official")
    return ABSENT if official in (None, record["gflops"]) else amount(official)


def _latency(record: Record, _: Ratio) -> str:
    median, low, high = (record.get(f"latency_ms_{name}") for name in ("median", "p20", "p80"))
    if median is None:
        return ABSENT
    if low is None or high is None:
        return milliseconds(median)
    return f"{milliseconds(median)} [{milliseconds(low)}-{milliseconds(high)}]"


_NAMES = (
    _Column("fusion", lambda record, _: series_name(record)),
    _Column("L_f", lambda record, _: str(record["fusion_layer"])),
    _Column("B", _n_bottlenecks),
)
_FLOPS = (
    _Column("linear\nGFLOPs", _number("gflops_linear", 2)),
    _Column("attention\nGFLOPs", _number("gflops_attention", 2)),
    _Column("total\nGFLOPs", _number("gflops", 2)),
    _Column("total\nratio", lambda _, ratio: _times(ratio.gflops, 3)),
)
_OFFICIAL = _Column("official\ncode", _official)
_MEASURED = (
    _Column("median ms\n[p20-p80]", _latency),
    _Column("time\nratio", lambda _, ratio: _times(ratio.latency, 2)),
    _Column("peak\nMB", _number("peak_memory_mb", 0)),
    _Column("clips/s", _number("clips_per_second", 2)),
)
