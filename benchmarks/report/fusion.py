"""Cost against the fusion layer, the paper's Figure 3, and how cost grows along other axes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from benchmarks.record import Document, Fit, Record
from benchmarks.report.comparisons import MIB, conditions_of
from benchmarks.report.results import PROFILE, Results
from mbt_fast.profiling import figure3
from mbt_fast.report.charts import OFFICIAL, Chart
from mbt_fast.report.page import figures, item_list, section, table
from mbt_fast.report.paper import FIGURE_3, FIGURE_3_CONDITIONS
from mbt_fast.report.records import by_series, is_pairwise
from mbt_fast.report.svg import Point, Series, line_chart

NAMES = {  # variants of the sweeps
    "ours": "bottleneck",
    "ours, vanilla own": "vanilla (own weights)",
    "ours, vanilla shared": "vanilla (shared weights)",
    "vanilla official": OFFICIAL,
}
AXES: dict[str, tuple[str, Callable[[Record], float]]] = {
    "fusion_layer": ("fusion layer", lambda r: r.shape["fusion_layer"]),
    "span": ("tokens of all modalities", lambda r: sum(r.shape["tokens"])),
    "n_bottlenecks": ("bottleneck tokens B", lambda r: r.shape["n_bottlenecks"]),
    "modalities": ("modalities of one length", lambda r: len(r.shape["tokens"])),
    "batch": ("clips in a batch", lambda r: r.shape["batch"]),
}
LOG_AXES = ("span", "n_bottlenecks", "batch")
VARY = {"span": ("tokens",), "modalities": ("tokens",), "batch": ("batch",)}  # not said of a chart
GIGA = 1e9


def flops_chart(records: Sequence[Mapping[str, Any]]) -> Chart:
    """GFLOPs of a clip by fusion layer, and what the official code spends on the same result."""
    lines = [
        _line(name, {layer: record["gflops"] for layer, record in layers.items()}, style)
        for style, (name, layers) in enumerate(by_series(records).items())
    ]
    pairwise = {r["fusion_layer"]: r["gflops_official"] for r in records if is_pairwise(r)}
    if pairwise:
        lines.append(_line(OFFICIAL, pairwise, len(lines)))
    svg = line_chart(
        lines,
        title="GFLOPs of one clip against the fusion layer",
        x_label="fusion layer",
        y_label="GFLOPs per clip (2 per multiply-add)",
    )
    return Chart("FLOPs", "Counted in closed form; lower is better", svg)


def latency_chart(records: Sequence[Mapping[str, Any]]) -> Chart:
    """Milliseconds by fusion layer."""
    keys = [f"latency_ms_{name}" for name in ("median", "p20", "p80")]
    label = f"ms per batch of {records[0]['batch_size']}"
    svg = _measured_chart(records, keys, "Latency", label)
    return Chart("Latency", "Median over the rounds, bars from p20 to p80; lower is better", svg)


def memory_chart(records: Sequence[Mapping[str, Any]]) -> Chart:
    """Peak memory by fusion layer."""
    svg = _measured_chart(records, ["peak_memory_mb"], "Peak memory", "MiB")
    return Chart("Peak memory", "Weights, inputs and what a call allocates; lower is better", svg)


def _measured_chart(
    records: Sequence[Mapping[str, Any]], keys: Sequence[str], title: str, y_label: str
) -> str:
    lines = []
    for style, (name, layers) in enumerate(by_series(records).items()):
        points = tuple(Point(layer, *(r[key] for key in keys)) for layer, r in layers.items())
        lines.append(Series(name, points, style, _from_to(points)))
    return line_chart(
        lines,
        title=f"{title} against the fusion layer",
        x_label="fusion layer",
        y_label=y_label,
        from_zero=True,
    )


def _line(name: str, values: Mapping[float, float], style: int) -> Series:
    points = tuple(Point(x, values[x]) for x in sorted(values))
    return Series(name, points, style, _from_to(points))


def _from_to(points: Sequence[Point]) -> str:
    """Where a line starts and ends, for its legend."""
    return f"{points[0].y:.4g} to {points[-1].y:.4g}"


def fusion_section(results: Results) -> str:
    """MBT-B by fusion layer: what a profile counted and measured."""
    heading = "Cost against the fusion layer"
    if not results.profile:
        said = "Not recorded here yet: mbt-fast profile --json profile.json."
        return section(heading, f'<p class="note">{said}</p>', "fusion")
    conditions = results.profile[0]["conditions"]
    said = "; ".join(
        conditions[key]
        for key in ("input", "call", "device", "dtype", "attention", "rounds", "versions", "date")
    )
    body = [
        f"<p>{escape(_fusion_words(results.profile))}</p>",
        figures(chart(results.profile) for chart in (flops_chart, latency_chart, memory_chart)),
        f'<p class="note">{escape(said)}. Record: {PROFILE}, written by '
        f"<code>{escape(conditions['command'])}</code>.</p>",
    ]
    return section(heading, "\n".join(body), "fusion")


def _fusion_words(records: Sequence[Mapping[str, Any]]) -> str:
    first = min(record["fusion_layer"] for record in records)
    last = max(record["fusion_layer"] for record in records)
    costs = {
        name: layers[first]["gflops"] / layers[last]["gflops"]
        for name, layers in by_series(records).items()
        if {first, last} <= set(layers)
    }
    said = "; ".join(f"{name} {ratio:.3f} times" for name, ratio in costs.items())
    return (
        f"FLOPs of fusing from layer {first} on, relative to late fusion at layer {last}: {said}. "
        "At late fusion only the logits meet, and all ways cost the same."
    )


def figure3_section(results: Results) -> str:
    """The right panel of the paper's Figure 3, reproduced, and what its baseline wastes."""
    points = figure3.points()
    by_fusion = {fusion: [p for p in points if p.fusion == fusion] for fusion in FIGURE_3.gflops}
    vanilla, bottleneck = (by_fusion[name][0] for name in ("vanilla", "bottleneck"))
    late = by_fusion["vanilla"][-1]
    efficient = vanilla.efficient / late.efficient
    words = (
        f"In the paper fusing from layer {vanilla.fusion_layer} on costs vanilla attention "
        f"{vanilla.paper / late.paper:.2f} times late fusion, and bottlenecks "
        f"{bottleneck.paper / late.paper:.2f} times. The official code runs each modality's whole "
        "block, queries, projections and MLP, over the tokens of all modalities, and throws the "
        "rows of the others away. The rows that are kept are the same without that work: done as "
        f"Eq. 5-6 ask, vanilla fusion costs {efficient:.2f} times late fusion. So bottlenecks save "
        f"{100 * (1 - bottleneck.ours / vanilla.efficient):.0f} % of an efficient vanilla model in "
        f"this setting, not {100 * (1 - bottleneck.paper / vanilla.paper):.0f} %."
    )
    rows = [
        [
            f"{p.fusion}, layer {p.fusion_layer}",
            f"{p.paper:.2f}",
            f"{p.ours:.2f}",
            f"{100 * p.element_wise_share:.2f}",
            f"{p.efficient:.2f}",
        ]
        for p in points
    ]
    headers = [
        "",
        "paper\n(read from its graphics)",
        "ours, as the\nofficial code",
        "element-wise work\nthe paper adds, %",
        "ours, as the\nequations ask",
    ]
    body = [
        f"<p>{escape(words)}</p>",
        "<p>The figure holds under four conditions, under which ours is counted here:</p>",
        item_list("ol", FIGURE_3_CONDITIONS),
        figures(_figure3_charts(by_fusion)),
        table(headers, [rows], "Figure 3 (right), reproduced"),
        '<p class="note">GFLOPs with a multiply-add counted as one; counted, not measured: '
        "<code>mbt-fast profile --figure3</code>. Source: arXiv 2107.00135, Figure 3, values read "
        "from its vector graphics to 0.01.</p>",
    ]
    return section("Figure 3 of the paper, reproduced", "\n".join(body), "figure3")


def _figure3_charts(by_fusion: Mapping[str, Sequence[figure3.Point]]) -> list[Chart]:
    vanilla, bottleneck = by_fusion["vanilla"], by_fusion["bottleneck"]
    own = (figure3.CONDITIONS.n_tokens(m) for m in figure3.CONDITIONS.modalities)
    tokens = " + ".join(map(str, own))
    lines = {
        "As printed": [
            _line("bottleneck (B = 5)", {p.fusion_layer: p.paper for p in bottleneck}, 0),
            _line("vanilla", {p.fusion_layer: p.paper for p in vanilla}, 3),
        ],
        "Ours, under its conditions": [
            _line("bottleneck (B = 5)", {p.fusion_layer: p.ours for p in bottleneck}, 0),
            _line("vanilla (own weights)", {p.fusion_layer: p.efficient for p in vanilla}, 1),
            _line(OFFICIAL, {p.fusion_layer: p.ours for p in vanilla}, 3),
        ],
    }
    return [
        Chart(
            caption,
            f"MBT-B, {tokens} tokens, B = {figure3.CONDITIONS.n_bottlenecks}",
            line_chart(
                series,
                title=f"Figure 3 (right) of the paper, {caption}",
                x_label="fusion layer",
                y_label="GFLOPs (1 per multiply-add)",
            ),
        )
        for caption, series in lines.items()
    ]


def sweeps_section(results: Results) -> str:
    """How cost grows with what, as drawn and as fitted."""
    heading = "How the cost grows"
    document = results.documents.get("sweeps")
    if document is None:
        said = escape(results.missing("sweeps"))
        return section(heading, f'<p class="note">{said}</p>', "sweeps")
    parts = ["<p>FLOPs are counted at every point; times are measured where they fit.</p>"]
    for axis, (label, _) in AXES.items():
        charts = [chart for q in QUANTITIES if (chart := _sweep_chart(document, axis, *q))]
        if charts:
            parts += [f"<h3>{escape(f'Against {label}')}</h3>", figures(charts)]
    parts.append(_fits(document.fits))
    parts.append(f'<p class="note">{escape(results.source("sweeps"))}</p>')
    return section(heading, "\n".join(filter(None, parts)), "sweeps")


Quantity = tuple[str, str, str, Callable[[Record], tuple[float, float | None, float | None] | None]]


def _milliseconds(record: Record) -> tuple[float, float | None, float | None] | None:
    return (record.ms.reported, record.ms.p20, record.ms.p80) if record.ms else None


def _gflop(record: Record) -> tuple[float, None, None] | None:
    return (record.flops / GIGA, None, None) if record.flops else None


def _peak(record: Record) -> tuple[float, None, None] | None:
    return (record.peak_memory / MIB, None, None) if record.peak_memory else None


QUANTITIES: tuple[Quantity, ...] = (
    (", counted", "FLOPs of a call", "GFLOP (2 per multiply-add)", _gflop),
    ("", "Latency of a call", "ms, bars from p20 to p80", _milliseconds),
    ("", "Peak memory, without weights and inputs", "MiB", _peak),
)


def _sweep_chart(
    document: Document, axis: str, suffix: str, caption: str, y_label: str, value: Any
) -> Chart | None:
    label, x_of = AXES[axis]
    records = [
        record
        for record in document.records
        if (record.case, record.mode) == (axis + suffix, "forward") and value(record)
    ]
    if len({x_of(record) for record in records}) < 2:
        return None
    lines = [
        Series(name, _points(records, variant, x_of, value), style)
        for style, (variant, name) in enumerate(NAMES.items())
        if any(record.variant == variant for record in records)
    ]
    title = f"{caption} against {label}"
    svg = line_chart(
        lines, title=title, x_label=label, y_label=y_label, log_x=axis in LOG_AXES, from_zero=True
    )
    same = {k: v for k, v in records[0].shape.items() if k not in VARY.get(axis, ())}
    return Chart(caption, conditions_of(replace(records[0], shape=same)), svg)


def _points(
    records: Iterable[Record], variant: str, x_of: Callable[[Record], float], value: Any
) -> tuple[Point, ...]:
    found = {x_of(r): Point(x_of(r), *value(r)) for r in records if r.variant == variant}
    return tuple(found[x] for x in sorted(found))


def _fits(fits: Sequence[Fit]) -> str:
    """Exponents, by axis and quantity in rows and by way to fuse in columns."""
    fits = [fit for fit in fits if fit.points > 2]  # any two points lie on a line
    if not fits:
        return ""
    ways = [variant for variant in NAMES if any(fit.variant == variant for fit in fits)]
    words = {
        "attention_flops": "attention's FLOPs",
        "flops": "FLOPs",
        "ms": "milliseconds",
    }
    rows: dict[tuple[str, str, str], dict[str, Fit]] = {}
    for fit in fits:
        axis = fit.case.partition(",")[0]
        rows.setdefault((axis, fit.quantity, fit.against), {})[fit.variant] = fit
    body = [
        [
            f"{words.get(quantity, quantity)} against {against}\nsweep over {AXES[axis][0]}",
            *(_exponent(row.get(way)) for way in ways),
        ]
        for (axis, quantity, against), row in rows.items()
    ]
    headers = ["", *(NAMES[way] for way in ways)]
    note = (
        "Exponents of power laws through the points, by least squares of the logarithms, with the "
        "root mean square of what is left and the number of points."
    )
    return f'<h3>Exponents</h3>\n<p class="note">{note}</p>\n{table(headers, [body], "Exponents")}'


def _exponent(fit: Fit | None) -> str:
    if fit is None:
        return ""
    return f"{fit.exponent:.2f}\nrms {fit.residual:.2f}, {fit.points} points"
