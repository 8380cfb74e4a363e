"""A page that needs nothing else: no script, no font, no network. And the pieces it is made of.

The page is also well-formed XML, so any tool can take it apart. Pieces take plain text and escape
it, but for what is called HTML.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from mbt_fast.report.charts import Chart
from mbt_fast.report.style import STYLE


def page(title: str, lede: str, body: str, footer: str) -> str:
    """A complete page.

    Args:
        title: Of the window and the page.
        lede: What it is about, in a few sentences.
        body: Sections as HTML.
        footer: What wrote it, as HTML.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light dark"/>
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="lede">{escape(lede)}</p>
</header>
<main>
{body}
</main>
<footer><p>{footer}</p></footer>
</body>
</html>
"""


def section(heading: str, body: str, anchor: str = "") -> str:
    """A heading and what is under it; ``anchor`` is what a link names."""
    name = f' id="{escape(anchor)}"' if anchor else ""
    return f"<section{name}>\n<h2>{escape(heading)}</h2>\n{body}\n</section>"


def item_list(tag: str, items: Iterable[str], css_class: str = "") -> str:
    """``ul`` or ``ol``."""
    entries = "\n".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<{tag} class="{css_class}">\n{entries}\n</{tag}>'


def figures(charts: Iterable[Chart], beside: str = "") -> str:
    """Charts in columns, with a text as the last one where it is given, as HTML."""
    drawn = "\n".join(
        f"<figure>\n<figcaption>{escape(chart.caption)}<small>{escape(chart.note)}</small>"
        f"</figcaption>\n{chart.svg}\n</figure>"
        for chart in charts
    )
    text = f"\n<div>\n{beside}\n</div>" if beside else ""
    return f'<div class="charts">\n{drawn}{text}\n</div>'


def table(headers: Sequence[str], groups: Iterable[Iterable[Sequence[str]]], label: str) -> str:
    """Rows in groups, in a box that scrolls by itself; the first cell of a row is its header.

    A cell may have several lines; in the body those after the first are smaller. A row of one cell
    is the heading of its group.
    """
    head = "".join(
        f'<th scope="col">{escape(text).replace(chr(10), "<br/>")}</th>' for text in headers
    )
    bodies = "\n".join(
        f"<tbody>\n{chr(10).join(_row(row, len(headers)) for row in rows)}\n</tbody>"
        for rows in groups
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">\n<table>\n'
        f"<thead>\n<tr>{head}</tr>\n</thead>\n{bodies}\n</table>\n</div>"
    )


def definitions(values: Mapping[str, str]) -> str:
    """Names and values; a ``command`` is code."""
    entries = "\n".join(
        f"<dt>{escape(str(name))}</dt>\n<dd>{_value(name, str(value))}</dd>"
        for name, value in values.items()
    )
    return f"<dl>\n{entries}\n</dl>"


def _row(cells: Sequence[str], width: int) -> str:
    head, *rest = map(_cell, cells)
    if not rest:
        return f'<tr class="group"><th scope="rowgroup" colspan="{width}">{head}</th></tr>'
    data = "".join(f"<td>{cell}</td>" for cell in rest)
    return f'<tr><th scope="row">{head}</th>{data}</tr>'


def _cell(text: str) -> str:
    first, *more = map(escape, text.split("\n"))
    return first + "".join(f"<small>{line}</small>" for line in more)


def _value(name: str, value: str) -> str:
    return f"<code>{escape(value)}</code>" if name == "command" else escape(value)
