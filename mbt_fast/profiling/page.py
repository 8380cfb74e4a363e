"""One HTML file with tables and plots: no script, no network, light and dark.

It is well-formed XML too, so any tool can take it apart. Needs the extra ``bench``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mbt_fast.profiling import plots

TEMPLATE = Path(__file__).with_name("page.html.jinja")


@dataclass(frozen=True)
class Section:
    """A part of a page. All text is plain and is escaped.

    Args:
        heading: Above it.
        text: Paragraphs, separated by empty lines.
        table: Headers and rows of cells; the first cell of a row names it.
        wide: ``<svg>`` elements that take the page's width, and are scrolled on a phone.
        plots: ``<svg>`` elements, as ``plots.svg`` gives them.
        code: Lines to copy.
    """

    heading: str
    text: str = ""
    table: tuple[list[str], list[list[str]]] | None = None
    wide: list[str] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    code: str = ""


def render(title: str, conditions: str, sections: Sequence[Section]) -> str:
    """A complete page.

    Args:
        title: Of the window and the page.
        conditions: Under which the numbers hold, shown under the title; lines are kept.
        sections: From top to bottom.

    Returns:
        HTML. Equal arguments give equal text.

    Raises:
        InputError: jinja2 is not installed.
    """
    plots.check_installed("jinja2")
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=title,
        conditions=conditions,
        sections=sections,
        light=plots.LIGHT.names(),
        dark=plots.DARK.names(),
    )
