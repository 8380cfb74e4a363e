"""Horizontal bars as inline SVG; name and value stand above each, the spread is drawn on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mbt_fast.report.svg import N_STYLES, WIDTH
from mbt_fast.report.ticks import nice_ticks, tick_text

LEFT, RIGHT = 2, WIDTH - 14
ROW, NAME, THICK = 42, 22, 12


@dataclass(frozen=True)
class Bar:
    """One value, with the ends of its spread where they are known; ``text`` is how it is written.

    ``style`` picks the colour, modulo ``N_STYLES``.
    """

    name: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    style: int = 0


def bar_chart(
    bars: Sequence[Bar], *, title: str, x_label: str, reference: float | None = None
) -> str:
    """Draw bars from zero, each with its name and its value above it.

    Args:
        bars: From top to bottom.
        title: Accessible name. The page shows it as the caption; the drawing does not repeat it.
        x_label: Name and unit of the values.
        reference: Where to draw a line beside each bar.

    Returns:
        One ``<svg>`` element, well-formed as XML, all text escaped, without ids.

    Raises:
        ValueError: There is no bar, or a value is negative or not finite.
    """
    _check(bars)
    highest = max(value for bar in bars for value in (bar.value, bar.high) if value is not None)
    ticks = nice_ticks(0.0, highest or 1.0)
    scale = (RIGHT - LEFT) / float(ticks[-1])
    bottom = ROW * len(bars)
    parts = [
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(_describe(bars, x_label))}</desc>",
        *(
            f'<path class="grid" d="M{LEFT + scale * float(tick):.1f} 0V{bottom}"/>'
            f'<text class="tick" x="{LEFT + scale * float(tick):.1f}" y="{bottom + 18}" '
            f'text-anchor="{"middle" if tick else "start"}">{tick_text(tick)}</text>'
            for tick in ticks
        ),
        *(_bar(bar, ROW * row, scale) for row, bar in enumerate(bars)),
        *(_reference(reference, ROW * row, scale) for row in range(len(bars))),
        f'<text class="label" x="{LEFT}" y="{bottom + 40}">{escape(x_label)}</text>',
    ]
    return (
        f'<svg class="chart" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {WIDTH} {bottom + 48}" width="100%">\n'
        f"{chr(10).join(filter(None, parts))}\n</svg>"
    )


def _check(bars: Sequence[Bar]) -> None:
    if not bars:
        raise ValueError("bars must hold at least one bar, got none")
    for bar in bars:
        values = [v for v in (bar.value, bar.low, bar.high) if v is not None]
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"bars must be finite and not negative, got {bar}")


def _describe(bars: Sequence[Bar], x_label: str) -> str:
    return f"{x_label}: {'; '.join(f'{bar.name} {bar.text}' for bar in bars)}."


def _bar(bar: Bar, top: float, scale: float) -> str:
    end, y = LEFT + scale * bar.value, top + NAME
    whisker = ""
    if bar.low is not None and bar.high is not None:
        low, high, middle = LEFT + scale * bar.low, LEFT + scale * bar.high, y + THICK / 2
        whisker = (
            f'<path class="whisker" d="M{low:.1f} {middle:g}H{high:.1f}'
            f'M{low:.1f} {middle - 4:g}v8M{high:.1f} {middle - 4:g}v8"/>'
        )
    return (
        f'<g class="series series-{bar.style % N_STYLES + 1}">'
        f'<text class="label" x="{LEFT}" y="{top + 16}">{escape(bar.name)}</text>'
        f'<path class="block" d="M{LEFT} {y}H{end:.1f}v{THICK}H{LEFT}z"/>{whisker}'
        f'<text class="label" x="{RIGHT}" y="{top + 16}" text-anchor="end">'
        f"{escape(bar.text)}</text></g>"
    )


def _reference(value: float | None, top: float, scale: float) -> str:
    """Beside the bar alone, so that it runs through no name."""
    if value is None:
        return ""
    x, y = LEFT + scale * value, top + NAME - 3
    return f'<path class="reference" d="M{x:.1f} {y:g}v{THICK + 6}"/>'
