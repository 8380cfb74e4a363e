"""A chart as a file of its own: an image that a document may show on any background."""

import re
from html import escape

from mbt_fast.report.style import CHART, DARK, LIGHT
from mbt_fast.report.svg import WIDTH

MARGIN, CAPTION = 16, 34
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif'


def standalone(svg: str, caption: str, least_height: int = 0) -> str:
    """An SVG file that carries its style, its caption and, as a card, its background.

    The background is drawn, because a document may be dark where the system is light.

    Args:
        svg: What ``line_chart`` or ``bar_chart`` returned.
        caption: What it shows, in one line.
        least_height: Of the drawing without its card, so that several stand in line.

    Raises:
        ValueError: ``svg`` is something else.
    """
    match = _opening(svg)
    height = max(int(match[2]), least_height) + CAPTION + 2 * MARGIN
    width = WIDTH + 2 * MARGIN
    box = f"{-MARGIN} {-CAPTION - MARGIN} {width} {height}"
    style = (
        f":root {{\n{LIGHT}}}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{\n{DARK}}} }}\n"
        f".chart {{ font-family: {FONT}; }}\n"
        f".chart .caption {{ font-size: 16px; font-weight: 600; }}\n"
        f".chart .card {{ fill: var(--page); stroke: var(--rule); }}\n{CHART}"
    )
    x, y = -MARGIN + 0.5, -CAPTION - MARGIN + 0.5
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {match[1]}viewBox="{box}" '
        f'width="{width}" height="{height}">\n<style>{style}</style>\n'
        f'<rect class="card" x="{x}" y="{y}" width="{width - 1}" height="{height - 1}" rx="8"/>\n'
        f'<text class="caption" x="0" y="{6 - CAPTION / 2:g}">{escape(caption)}</text>'
    )
    return head + svg[match.end() :] + "\n"


def height_of(svg: str) -> int:
    """Height of a chart in its own units.

    Raises:
        ValueError: ``svg`` is something else.
    """
    return int(_opening(svg)[2])


def _opening(svg: str) -> re.Match[str]:
    match = re.match(r'<svg ([^>]*)viewBox="0 0 \d+ (\d+)" width="100%">', svg)
    if match is None:
        raise ValueError(f"svg must be a chart of this package, got {svg[:60]!r}")
    return match
