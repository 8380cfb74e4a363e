"""The report of a profile as one HTML page."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

from mbt_fast.report.charts import (
    cost_chart,
    measured_charts,
    paper_accuracy_chart,
    paper_cost_charts,
)
from mbt_fast.report.headlines import headlines
from mbt_fast.report.page import definitions, figures, item_list, page, section, table
from mbt_fast.report.paper import (
    FIGURE_3,
    FIGURE_3_CONDITIONS,
    LATE_FUSION_LAYER,
    Figure3,
)
from mbt_fast.report.records import Record, by_setting, check_records
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
        section("In short", item_list("ul", headlines(records), "headlines")),
        section("Variants and their FLOPs", figures([cost_chart(records)], beside=_VARIANTS)),
        *_measured_sections(records),
        _paper_section(records, paper) if paper else "",
        section("All records", _table(records)),
        section("Conditions", definitions(conditions)) if conditions else "",
    ]
    body = "\n".join(filter(None, sections))
    return page(TITLE, _INTRODUCTION, body, "Written by <code>mbt-fast profile</code>.")


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


def _measured_sections(records: Sequence[Record]) -> list[str]:
    sections = []
    for setting, group in by_setting(records).items():
        charts = measured_charts(group, records)
        if charts:
            sections.append(section(f"Measured: {setting}", figures(charts)))
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
        item_list("ol", FIGURE_3_CONDITIONS),
        f"<p>{_ADVICE}</p>",
        figures(paper_cost_charts(records, paper)),
        figures([paper_accuracy_chart(records, paper)], beside=_ACCURACY),
    ]
    return section("Beside the paper", "\n".join(body))


def _table(records: Sequence[Record]) -> str:
    """The records, one row group per series."""
    cells = table_cells(records)
    groups = [list(rows) for _, rows in groupby(cells.rows, key=lambda row: row[0])]
    common = shared_setting(records)
    notes = [f"In all of them: {common}."] if common else []
    said = escape(" ".join([*notes, units_note()]))
    return f'<p class="note">{said}</p>\n' + table(cells.headers, groups, "All records")
