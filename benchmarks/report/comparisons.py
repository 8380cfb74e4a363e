"""Entries in which variants are compared: bars of the first comparison, a table of all."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from html import escape
from typing import Any, NamedTuple

from benchmarks import registry
from benchmarks.record import Document, Record
from benchmarks.report.results import Results, spread_text
from mbt_fast.profiling.measure import MIB
from mbt_fast.report.bars import Bar, bar_chart
from mbt_fast.report.charts import Chart
from mbt_fast.report.page import figures, section, table
from mbt_fast.report.table import amount, milliseconds

MODES = {
    "forward": "forward",
    "backward": "backward alone",
    "step": "forward and backward, no optimiser",
}
OURS = "ours"
OURS_STYLE, PEER_STYLE, WASTEFUL_STYLE = 0, 5, 1

DROP_RATE = "stochastic_depth"

Key = tuple[Any, ...]


class Entry(NamedTuple):
    """A section of the page: an entry of the registry, its heading and what to say of it."""

    name: str
    heading: str
    said: str
    charts: int = 2
    in_pairs: bool = False  # a row for each comparison with the baseline; the times alone


ENTRIES = (
    Entry(
        "attention",
        "Attention",
        "Attention of all streams of a fused layer and nothing around it. FLOPs are those that "
        "the op asks for; nothing that a backward computes again is counted as useful.",
    ),
    Entry(
        "layer",
        "A fusion layer",
        "One layer with norms, projections, attention, MLP and the shared slots, every way with "
        "the same weights on the same tokens.",
    ),
    Entry(
        "model",
        "The model",
        "From patches to logits. A step is forward, loss and backward.",
        charts=3,
    ),
    Entry(
        "savings",
        "What is not computed and not kept",
        "Each exact saving alone and all together: no result changes.",
        charts=3,
    ),
    Entry(
        "layer_ops",
        "GELU, LayerNorm and residual sums",
        "What lies between the matrix products of a layer, against torch's own functions. Memory "
        "and operators are in the record.",
        in_pairs=True,
    ),
)


def sections(results: Results) -> dict[str, str]:
    """One section for each entry, by name."""
    return {entry.name: _section(results, entry) for entry in ENTRIES}


def _section(results: Results, entry: Entry) -> str:
    document = results.documents.get(entry.name)
    said = f"<p>{escape(entry.said)}</p>"
    if document is None:
        body = f'{said}\n<p class="note">{escape(results.missing(entry.name))}</p>'
        return section(entry.heading, body, entry.name)
    groups = by_comparison(document.records)
    timed = [rows for rows in groups.values() if any(row.ratio for row in rows)]
    charts = [ratio_chart(rows) for rows in _chosen(timed, entry.charts)]
    charts += [chart for chart in (_depth_chart(timed), _kept_chart(groups.values())) if chart]
    parts = [
        said,
        figures(charts) if charts else "",
        _legend(document.records),
        _tables(document, entry),
        f'<p class="note">{escape(results.source(entry.name))}</p>',
    ]
    return section(entry.heading, "\n".join(filter(None, parts)), entry.name)


def by_comparison(records: Iterable[Record]) -> dict[Key, list[Record]]:
    """Records whose variants were timed in the same rounds, in the order of the document."""
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    return groups


def _chosen(groups: Sequence[list[Record]], count: int) -> list[list[Record]]:
    """The first comparison of each case and mode: documents begin with the most telling one."""
    first: dict[Key, list[Record]] = {}
    for rows in groups:
        if DROP_RATE not in rows[0].shape:
            first.setdefault((rows[0].case, rows[0].mode), rows)
    return list(first.values())[:count]


def ratio_chart(rows: Sequence[Record]) -> Chart:
    """How many times faster than the baseline each variant is."""
    baseline = next(row.baseline for row in rows if row.ratio)
    bars = [
        Bar(
            row.variant,
            row.ratio.reported,
            _ratio(row),
            *_interval(row),
            style_of(row.variant),
        )
        for row in rows
        if row.ratio
    ]
    x_label = f"times as fast as {baseline}"
    named = "" if rows[0].case == rows[0].mode else f"{rows[0].case}, "
    caption = f"{named}{MODES[rows[0].mode]}"
    note = f"{conditions_of(rows[0])}; higher is better"
    if any(bar.low is not None for bar in bars):
        quiet = any(row.ratio and row.ratio.quiet is not None for row in rows)
        note += (
            f", whiskers {'of two standard errors' if quiet else 'from p20 to p80 of the rounds'}"
        )
    svg = bar_chart(bars, title=f"{caption}: {x_label}", x_label=x_label, reference=1.0)
    return Chart(caption, note, svg)


def _depth_chart(groups: Iterable[Sequence[Record]]) -> Chart | None:
    """What skipping dropped branches is worth, by drop rate."""
    bars, said = [], ""
    for rows in groups:
        for row in rows:
            if DROP_RATE in row.shape and row.ratio and row.variant != row.baseline:
                name = f"drop rate {row.shape[DROP_RATE]:g}"
                bars.append(Bar(name, row.ratio.reported, _ratio(row), *_interval(row)))
                same = {key: value for key, value in row.shape.items() if key != DROP_RATE}
                said = conditions_of(replace(row, shape=same))
    if not bars:
        return None
    x_label = "times as fast, dropped branches skipped instead of masked"
    caption = "A step under stochastic depth"
    svg = bar_chart(bars, title=f"{caption}: {x_label}", x_label=x_label, reference=1.0)
    return Chart(caption, f"{said}; higher is better", svg)


def _kept_chart(groups: Iterable[Sequence[Record]]) -> Chart | None:
    """What is kept for the backward where that is all that was measured; the first such group."""
    for rows in groups:
        if all(row.saved_memory and not row.ms for row in rows):
            bars = [
                Bar(row.variant, size / MIB, f"{size / MIB:.1f} MiB", style=style_of(row.variant))
                for row in rows
                if (size := row.saved_memory)
            ]
            caption = "Kept for the backward by a fusion layer"
            svg = bar_chart(bars, title=caption, x_label="MiB")
            return Chart(caption, f"{conditions_of(rows[0])}; counted, lower is better", svg)
    return None


def style_of(variant: str) -> int:
    """Ours stand out, and so does what is no fair baseline."""
    if variant.startswith(OURS):
        return OURS_STYLE
    return WASTEFUL_STYLE if variant == "vanilla official" else PEER_STYLE


def conditions_of(record: Record) -> str:
    """What a comparison was measured on: shape, dtype, threads."""
    shape = record.shape
    said = []
    if "model" in shape:
        said.append(MODELS.get(shape["model"], shape["model"]))
    for key, value in shape.items():
        if key in SHAPE_WORDS:
            said.append(SHAPE_WORDS[key](value))
    said.append(record.dtype)
    if record.threads:
        said.append(f"{record.threads} thread{'s' * (record.threads > 1)}")
    return ", ".join(filter(None, said))


MODELS = {
    "mbt_tiny": "MBT for tests",
    "mbt_small": "MBT-S",
    "mbt_base": "MBT-B",
    "mbt_large": "MBT-L",
}
SHAPE_WORDS: dict[str, Callable[[Any], str]] = {
    "batch": lambda value: f"batch {value}",
    "rows": lambda value: f"streams of {_sizes(value)} rows",
    "tokens": lambda value: f"{_sizes(value)} tokens",
    "std": lambda value: "" if value == 1 else f"inputs of standard deviation {value:g}",
    DROP_RATE: lambda value: f"drop rate {value:g}",
}


def _sizes(value: int | Sequence[int]) -> str:
    return str(value) if isinstance(value, int) else " + ".join(map(str, value))


def _legend(records: Sequence[Record]) -> str:
    """What the peers are, in the registry's words."""
    names = dict.fromkeys(record.variant for record in records)
    known = "\n".join(
        f"<dt>{escape(name)}</dt>\n<dd>{escape(registry.PEERS[name])}</dd>"
        for name in names
        if name in registry.PEERS
    )
    return f"<dl>\n{known}\n</dl>" if known else ""


def _tables(document: Document, entry: Entry) -> str:
    """Every record, by mode."""
    groups = by_comparison(document.records)
    draw = _pairs_table if entry.in_pairs else records_table
    parts = []
    for mode, said in MODES.items():
        of_mode = [rows for rows in groups.values() if rows[0].mode == mode]
        if of_mode:
            label = f"{entry.heading}, {said}"
            parts += [f"<h3>{escape(label)}</h3>", draw(of_mode, label)]
    return "\n".join(parts)


class _Column(NamedTuple):
    header: str
    cell: Callable[[Record], str]


COLUMNS = (
    _Column("ms\n[p20-p80 of\nall rounds]", lambda r: _ms(r)),
    _Column("times as fast\nas the baseline", lambda r: _ratio(r)),
    _Column("GFLOP", lambda r: amount(r.flops / 1e9) if r.flops else ""),
    _Column("of torch's\nmatmul", lambda r: _percent(r.share_of_matmul)),
    _Column("of torch's\ncopy", lambda r: _percent(r.share_of_copy)),
    _Column("peak\nMiB", lambda r: _mebibytes(r.peak_memory)),
    _Column("kept for the\nbackward, MiB", lambda r: _mebibytes(r.saved_memory)),
    _Column("operators", lambda r: str(r.launches or "")),
    _Column("rounds", lambda r: str(r.rounds or "")),
)


def records_table(groups: Sequence[Sequence[Record]], label: str) -> str:
    """Columns without a value are left out; what was not measured says why."""
    records = [record for rows in groups for record in rows]
    columns = [c for c in COLUMNS if any(c.cell(record) for record in records)]
    body = []
    for rows in groups:
        head = [f"{rows[0].case}\n{conditions_of(rows[0])}"]
        body.append([head, *(_row(record, columns) for record in rows)])
    return table(["", *(column.header for column in columns)], body, label)


def _pairs_table(groups: Sequence[Sequence[Record]], label: str) -> str:
    """One row for each comparison of a variant with its baseline."""
    body = []
    for rows in groups:
        base = next(row for row in rows if row.variant == row.baseline)
        for other in (row for row in rows if row is not base):
            times = (f"{_ms(row)}\n{row.variant}" for row in (base, other))
            ratio = f"{_ratio(other)}\n{other.rounds} rounds" if other.ratio else ""
            body.append([f"{base.case}\n{conditions_of(base)}", *times, other.error or ratio])
    headers = ["", *(f"{of}\nms [p20-p80 of\nall rounds]" for of in ("baseline", "variant"))]
    headers.append("times\nas fast")
    return table(headers, [body], label)


def _row(record: Record, columns: Sequence[_Column]) -> list[str]:
    mark = " (baseline)" if record.variant == record.baseline else ""
    name = f"{record.variant}{mark}"
    if record.error:
        name += f"\n{record.error}"
    return [name, *(column.cell(record) for column in columns)]


def _ms(record: Record) -> str:
    if record.ms is None:
        return ""
    shown, low, high = milliseconds(record.ms.reported), record.ms.p20, record.ms.p80
    if low is None or high is None:
        return shown
    return f"{shown} [{milliseconds(low)}-{milliseconds(high)}]"


def _ratio(record: Record) -> str:
    """The rounds' own interval stands beside a median of them only."""
    if record.ratio is None:
        return ""
    unsure = "" if record.uncertainty is None else f" \N{PLUS-MINUS SIGN} {record.uncertainty:.1%}"
    if record.ratio.quiet is not None:
        return f"{record.ratio.quiet:.2f}{unsure}"
    return f"{spread_text(record.ratio)}{unsure}"


def _interval(record: Record) -> tuple[float | None, float | None]:
    """Of a ratio: two standard errors around one of quiet times, of the rounds around a median."""
    ratio = record.ratio
    if ratio is None or ratio.quiet is None:
        return (ratio.p20, ratio.p80) if ratio else (None, None)
    if record.uncertainty is None:
        return None, None
    error = 2 * record.uncertainty
    return ratio.quiet * max(0.0, 1 - error), ratio.quiet * (1 + error)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _mebibytes(count: int | None) -> str:
    return "" if count is None else amount(count / MIB, 1)
