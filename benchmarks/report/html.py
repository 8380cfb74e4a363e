"""Everything that the records say, as one page that needs nothing else."""

from html import escape

from benchmarks.report import comparisons, evidence, fusion
from benchmarks.report.results import Results
from mbt_fast.report.page import page

TITLE = "mbt_fast: what was measured"
LEDE = (
    "Bottleneck fusion in PyTorch, exact and fast: FLOPs, latency and memory against the fusion "
    "layer, against every other way to fuse, and against torch's own parts. Conditions, record and "
    "commit stand under each number."
)


def render(results: Results) -> str:
    """The page."""
    compared = comparisons.sections(results)
    sections = [
        evidence.provenance_section(results),
        fusion.fusion_section(results),
        fusion.figure3_section(results),
        fusion.sweeps_section(results),
        compared["attention"],
        compared["layer"],
        compared["model"],
        evidence.parts_section(results),
        compared["layer_ops"],
        compared["savings"],
        evidence.repeated_section(results),
        evidence.tolerance_section(results),
        evidence.ahead_section(results),
    ]
    body = "\n".join([_contents(sections), *sections])
    return page(TITLE, LEDE, body, "Written by <code>python -m benchmarks.report</code>.")


def _contents(sections: list[str]) -> str:
    """Links to the sections."""
    links = []
    for text in sections:
        anchor = text.partition('id="')[2].partition('"')[0]
        heading = text.partition("<h2>")[2].partition("</h2>")[0]
        links.append(f'<li><a href="#{escape(anchor)}">{heading}</a></li>')
    return f'<nav aria-label="Contents"><ol class="contents">{"".join(links)}</ol></nav>'
