"""Line charts as inline SVG. Colours come from the page's style sheet (``mbt_fast.report.style``).

The drawing is laid out in its own units and scales with the page: 460 of them across, so that 13
remains legible on a phone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from mbt_fast.report.ticks import nice_ticks, tick_text

WIDTH = 460
LEFT, RIGHT = 54, WIDTH - 4
PLOT_HEIGHT = 210
LEGEND_ROW = 20
MAX_TICKS_AT_POINTS = 13

DASHES = ("", "8 4", "2 4", "10 3 2 3", "5 2", "1 3")
MARKERS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",  # circle
    "M-4 -4h8v8h-8z",  # square
    "M0 -5.5L5 3.5h-10z",  # triangle
    "M0 -5.5L5.5 0L0 5.5L-5.5 0z",  # diamond
    "M0 5.5L5 -3.5h-10z",  # triangle on its tip
    "M-5 -1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z",  # plus
)
N_STYLES = len(MARKERS)


@dataclass(frozen=True)
class Point:
    """One value of a series, with the ends of its error bar where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None

    @property
    def extent(self) -> tuple[float, ...]:
        """Everything drawn along y."""
        return tuple(v for v in (self.y, self.low, self.high) if v is not None)


@dataclass(frozen=True)
class Series:
    """A named line. ``style`` picks colour, marker and dash pattern, modulo ``N_STYLES``.

    ``note`` stands behind the name in the legend.
    """

    name: str
    points: tuple[Point, ...]
    style: int = 0
    note: str = ""


@dataclass(frozen=True)
class _Axis:
    """A map from values in ``[low, high]`` to drawing units in ``[start, end]``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    description: str | None = None,
    log_x: bool = False,
    from_zero: bool = False,
) -> str:
    """Draw lines with markers, error bars, grid and legend.

    The y axis starts at zero unless all values lie in its upper half; then it starts above zero,
    and the chart says where.

    Args:
        series: Lines in the order of the legend; the first is drawn on top.
        title: Accessible name. The page shows it as the caption; the drawing does not repeat it.
        x_label: Name of the x axis.
        y_label: Name and unit of the y axis.
        description: Accessible description; by default the first and last value of each series.
        log_x: Whether equal ratios of x are equal distances; all x are then positive, and every one
            has a tick.
        from_zero: Start the y axis at zero in any case.

    Returns:
        One ``<svg>`` element, well-formed as XML, all text escaped, without ids.

    Raises:
        ValueError: There is no series, one has no point, or a value is not finite.
    """
    _check(series)
    top = 36
    bottom = top + PLOT_HEIGHT
    legend = bottom + 66
    x_ticks, y_ticks = _x_ticks(series, log=log_x), _y_ticks(series, from_zero=from_zero)
    x = _Axis(min(x_ticks), max(x_ticks), LEFT + 12, RIGHT - 12, log=log_x)
    y = _Axis(float(y_ticks[0][0]), float(y_ticks[-1][0]), bottom, top)
    start = f" (axis starts at {y_ticks[0][1]})" if y.low > 0 else ""
    parts = [
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(description or _describe(series, x_label, y_label))}</desc>",
        f'<text class="label" x="0" y="{top - 20}">{escape(y_label)}'
        f'<tspan class="note">{start}</tspan></text>',
        *(_y_tick(y(value), text) for value, text in y_ticks),
        f'<path class="axis" d="M{LEFT} {bottom}H{RIGHT}"/>',
        *(_x_tick(x(value), bottom, text) for value, text in x_ticks.items()),
        f'<text class="label" x="{(LEFT + RIGHT) / 2:g}" y="{bottom + 42}" '
        f'text-anchor="middle">{escape(x_label)}</text>',
        *(_line(line, x, y) for line in reversed(series)),
        *(_legend_row(line, legend + LEGEND_ROW * row) for row, line in enumerate(series)),
    ]
    size = f"{WIDTH} {legend + LEGEND_ROW * len(series) - 8}"
    return (
        f'<svg class="chart" role="img" aria-label="{escape(title)}" viewBox="0 0 {size}" '
        f'width="100%">\n{chr(10).join(parts)}\n</svg>'
    )


def _check(series: Sequence[Series]) -> None:
    if not series:
        raise ValueError("series must hold at least one series, got none")
    for line in series:
        if not line.points:
            raise ValueError(f"series {line.name!r} must hold at least one point, got none")
        for point in line.points:
            if not all(map(math.isfinite, (point.x, *point.extent))):
                raise ValueError(f"points of {line.name!r} must be finite, got {point}")


def _x_ticks(series: Sequence[Series], *, log: bool = False) -> dict[float, str]:
    """A tick at every value if they are few; the first and the last are the ends of the axis."""
    values = sorted({point.x for line in series for point in line.points})
    if log or 1 < len(values) <= MAX_TICKS_AT_POINTS:
        return {value: f"{value:g}" for value in values}
    return {float(tick): tick_text(tick) for tick in nice_ticks(values[0], values[-1])}


def _y_ticks(series: Sequence[Series], *, from_zero: bool) -> list[tuple[float, str]]:
    values = [value for line in series for point in line.points for value in point.extent]
    low, high = min(values), max(values)
    above = high / 2 < low < high and not from_zero
    bottom = low if above else min(low, 0.0)
    ticks = nice_ticks(bottom, max(high, 0.0) or 1.0)
    return [(float(tick), tick_text(tick)) for tick in ticks]


def _describe(series: Sequence[Series], x_label: str, y_label: str) -> str:
    lines = (
        f"{line.name} goes from {line.points[0].y:.4g} at {line.points[0].x:g} "
        f"to {line.points[-1].y:.4g} at {line.points[-1].x:g}"
        for line in series
    )
    return f"{y_label} against {x_label}: {'; '.join(lines)}."


def _y_tick(y: float, text: str) -> str:
    return (
        f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">{text}</text>'
    )


def _x_tick(x: float, bottom: float, text: str) -> str:
    return (
        f'<path class="axis" d="M{x:.1f} {bottom}v5"/>'
        f'<text class="tick" x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{text}</text>'
    )


def _group(style: int, body: str) -> str:
    return f'<g class="series series-{style % N_STYLES + 1}">{body}</g>'


def _stroke(style: int, path: str) -> str:
    dash = DASHES[style % N_STYLES]
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="line" d="{path}"{pattern}/>'


def _marker(style: int, x: float, y: float, tooltip: str = "") -> str:
    title = f"<title>{escape(tooltip)}</title>" if tooltip else ""
    shape = MARKERS[style % N_STYLES]
    return f'<path class="marker" transform="translate({x:.1f} {y:.1f})" d="{shape}">{title}</path>'


def _legend_row(line: Series, y: float) -> str:
    note = f'<tspan class="note"> {escape(line.note)}</tspan>' if line.note else ""
    text = f'<text class="legend" x="{LEFT + 48}" y="{y + 4.5:g}">{escape(line.name)}{note}</text>'
    sample = _stroke(line.style, f"M{LEFT} {y:g}h38") + _marker(line.style, LEFT + 19, y)
    return _group(line.style, sample + text)


def _line(line: Series, x: _Axis, y: _Axis) -> str:
    points = sorted(line.points, key=lambda point: point.x)
    path = "M" + "L".join(f"{x(point.x):.1f} {y(point.y):.1f}" for point in points)
    bars = "".join(_error_bar(point, x, y) for point in points)
    markers = "".join(
        _marker(line.style, x(point.x), y(point.y), _tooltip(line, point)) for point in points
    )
    return _group(line.style, bars + _stroke(line.style, path) + markers)


def _error_bar(point: Point, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    if point.low is None or point.high is None:
        return ""
    centre, low, high = x(point.x), y(point.low), y(point.high)
    return (
        f'<path class="bar" d="M{centre:.1f} {low:.1f}V{high:.1f}'
        f'M{centre - 4:.1f} {low:.1f}h8M{centre - 4:.1f} {high:.1f}h8"/>'
    )


def _tooltip(line: Series, point: Point) -> str:
    text = f"{line.name}, {point.x:g}: {point.y:,.5g}"
    if point.low is None or point.high is None:
        return text
    return f"{text} [{point.low:,.5g} to {point.high:,.5g}]"
