"""The report as one HTML page that needs nothing else: no script, no font, no network.

The page is also well-formed XML, so any tool can take it apart.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby

from mbt_fast.report.charts import (
    Chart,
    cost_chart,
    measured_charts,
    paper_accuracy_chart,
    paper_cost_charts,
)
from mbt_fast.report.headlines import headlines
from mbt_fast.report.paper import (
    FIGURE_3,
    FIGURE_3_CONDITIONS,
    LATE_FUSION_LAYER,
    Figure3,
)
from mbt_fast.report.records import Record, by_setting, check_records
from mbt_fast.report.style import STYLE
from mbt_fast.report.table import shared_setting, table_cells, units_note

TITLE = "What fusion costs: MBT, layer by layer"


def render_html(
    records: Sequence[Record],
    conditions: Mapping[str, str],
    paper: Figure3 | None = FIGURE_3,
) -> str:
    """Write the report of a profile.

    Args:
        records: What ``mbt-fast profile --json`` writes. Charts without a value are left out, as
            are points that are ``None``. ``gflops_official``, where present, is the cost of the
            same model as the official code computes it.
        conditions: Under which the records were taken, in the order shown: model, input, device,
            versions, command, date.
        paper: What to show beside the records; ``None`` leaves the section out.

    Returns:
        A complete page. Equal arguments give equal text.

    Raises:
        ValueError: There is no record, one lacks a key, or a value is not finite.
    """
    check_records(records)
    sections = [
        _section("In short", _list("ul", headlines(records), "headlines")),
        _section("Variants and their FLOPs", _charts([cost_chart(records)], beside=_VARIANTS)),
        *_measured_sections(records),
        _paper_section(records, paper) if paper else "",
        _section("All records", _table(records)),
        _section("Conditions", _definitions(conditions)) if conditions else "",
    ]
    body = "\n".join(filter(None, sections))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light dark"/>
<title>{TITLE}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{TITLE}</h1>
<p class="lede">{_INTRODUCTION}</p>
</header>
<main>
{body}
</main>
<footer><p>Written by <code>mbt-fast profile</code>.</p></footer>
</body>
</html>
"""


_INTRODUCTION = (
    "A Multimodal Bottleneck Transformer (Nagrani et al., 2021, arXiv 2107.00135) keeps its "
    "modalities apart below the fusion layer and lets them meet from there on. Fusion layer 0 is "
    "early fusion; at the number of layers, only the logits meet, which is late fusion."
)

_VARIANTS = """<dl class="stacked">
<dt>bottleneck</dt>
<dd>The modalities exchange only B shared tokens (Eq. 7-9 of the paper).</dd>
<dt>vanilla (own weights)</dt>
<dd>Pairwise attention: each modality's tokens attend to all tokens, with the modality's own
weights (Eq. 5-6). Ratios to vanilla refer to this one.</dd>
<dt>vanilla (shared weights)</dt>
<dd>Joint self-attention over all tokens, with one set of weights (Eq. 4).</dd>
</dl>"""

_ADVICE = (
    "The inputs may differ from those of this profile, so compare the shape of the curves rather "
    "than their values. The line of the official code is there to be recognised: the efficient "
    "model gives the same result."
)

_ACCURACY = """<p>Cost is one side. Accuracy, which this profile does not measure, is the other: in
the paper it is best to fuse in the later layers, and bottlenecks beat vanilla fusion up to
layer 8.</p>
<p class="note">The paper's values are read from its vector graphics, to 0.01.</p>"""


def _section(heading: str, body: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>"


def _list(tag: str, items: Iterable[str], css_class: str = "") -> str:
    entries = "\n".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<{tag} class="{css_class}">\n{entries}\n</{tag}>'


def _charts(charts: Iterable[Chart], beside: str = "") -> str:
    """Figures in columns, with a text as the last one where it is given."""
    figures = "\n".join(
        f"<figure>\n<figcaption>{escape(chart.caption)}<small>{escape(chart.note)}</small>"
        f"</figcaption>\n{chart.svg}\n</figure>"
        for chart in charts
    )
    text = f"\n<div>\n{beside}\n</div>" if beside else ""
    return f'<div class="charts">\n{figures}{text}\n</div>'


def _measured_sections(records: Sequence[Record]) -> list[str]:
    sections = []
    for setting, group in by_setting(records).items():
        charts = measured_charts(group, records)
        if charts:
            sections.append(_section(f"Measured: {setting}", _charts(charts)))
    return sections


def _paper_section(records: Sequence[Record], paper: Figure3) -> str:
    first, late = min(paper.gflops["vanilla"]), LATE_FUSION_LAYER
    ratio = {fusion: cost[first] / cost[late] for fusion, cost in paper.gflops.items()}
    comparison = (
        f"In Figure 3 of the paper, fusing from layer {first} on costs {ratio['vanilla']:.2f} "
        f"times late fusion with vanilla attention, and {ratio['bottleneck']:.2f} times with "
        "bottlenecks. Most of that gap is not the price of attending to all tokens but that of "
        "rows which the official code computes and throws away. The figure holds under four "
        "conditions:"
    )
    body = [
        f"<p>{escape(comparison)}</p>",
        _list("ol", FIGURE_3_CONDITIONS),
        f"<p>{_ADVICE}</p>",
        _charts(paper_cost_charts(records, paper)),
        _charts([paper_accuracy_chart(records, paper)], beside=_ACCURACY),
    ]
    return _section("Beside the paper", "\n".join(body))


def _table(records: Sequence[Record]) -> str:
    """The records, one row group per series, in a box that scrolls by itself."""
    table = table_cells(records)
    header = "".join(
        f'<th scope="col">{escape(text).replace(chr(10), "<br/>")}</th>' for text in table.headers
    )
    groups = "\n".join(
        f"<tbody>\n{chr(10).join(map(_row, rows))}\n</tbody>"
        for _, rows in groupby(table.rows, key=lambda row: row[0])
    )
    common = shared_setting(records)
    notes = [f"In all of them: {common}."] if common else []
    return (
        f'<p class="note">{escape(" ".join([*notes, units_note()]))}</p>\n'
        '<div class="scroll" tabindex="0" role="region" aria-label="All records">\n<table>\n'
        f"<thead>\n<tr>{header}</tr>\n</thead>\n{groups}\n"
        "</table>\n</div>"
    )


def _row(cells: Sequence[str]) -> str:
    head, *rest = map(escape, cells)
    data = "".join(f"<td>{cell}</td>" for cell in rest)
    return f'<tr><th scope="row">{head}</th>{data}</tr>'


def _definitions(conditions: Mapping[str, str]) -> str:
    entries = "\n".join(
        f"<dt>{escape(str(name))}</dt>\n<dd>{_value(name, str(value))}</dd>"
        for name, value in conditions.items()
    )
    return f"<dl>\n{entries}\n</dl>"


def _value(name: str, value: str) -> str:
    return f"<code>{escape(value)}</code>" if name == "command" else escape(value)
