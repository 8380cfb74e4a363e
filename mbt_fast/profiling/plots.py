"""Plots as SVG, light and dark, the same for files and pages. Needs the extra ``bench``.

The colours of the series are those of Okabe and Ito ("Color Universal Design", 2008), which readers
with any common colour vision deficiency tell apart, darker or lighter until their contrast to the
background is at least 3 to 1. Text stays text, and equal plots give equal files.
"""

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mbt_fast.errors import InputError
from mbt_fast.profiling.tables import significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Axes"], None]
DrawFigure = Callable[["Figure"], None]
Layout = Literal["constrained"] | None
Point = tuple[float, float, float | None, float | None]  # x, y, and the ends of the error bar

MARKERS = "osD^vP"
TICKS_AT_POINTS = 8  # x ticks stand at the values if they are no more than this
POINTS_PER_LETTER = 5.5  # of the text in a plot, in its font size


@dataclass(frozen=True)
class Theme:
    """Colours as ``#rrggbb``, no two alike."""

    text: str
    muted: str
    grid: str
    series: tuple[str, ...]

    def names(self) -> dict[str, str]:
        """Colour to the CSS variable that stands for it on a page."""
        series = {color: f"--series-{index}" for index, color in enumerate(self.series, 1)}
        return {self.text: "--text", self.muted: "--muted", self.grid: "--grid", **series}


LIGHT = Theme(
    text="#1b1f24",
    muted="#59636e",
    grid="#e2e6ea",
    series=("#0072b2", "#d55e00", "#008a65", "#b0578a", "#8a6d00", "#4a5560"),
)
DARK = Theme(
    text="#e4e8ec",
    muted="#9da7b1",
    grid="#30373e",
    series=("#56b4e9", "#f0883e", "#2fc29a", "#e39ac4", "#e6c84a", "#a9b4bf"),
)


def check_installed(*packages: str) -> None:
    """Refuse to work without what plots and pages need.

    Raises:
        InputError: A package is not installed.
    """
    missing = " and ".join(name for name in packages if find_spec(name) is None)
    if missing:
        raise InputError(f'plots need {missing}; pip install "mbt-fast[bench]"')


def save_plot(
    draw: Draw, path: Path, *, size: tuple[float, float] = (4.6, 3.2)
) -> tuple[Path, Path]:
    """``save_figure`` of one plot; ``draw`` draws on empty axes."""
    return save_figure(lambda figure: draw(figure.add_subplot()), path, size=size)


def save_figure(draw: DrawFigure, path: Path, *, size: tuple[float, float]) -> tuple[Path, Path]:
    """Write a figure for light pages, and one for dark pages beside it.

    Args:
        draw: Draws on an empty figure; called once for each file.
        path: The light file, ``name.svg``; the dark one is ``name-dark.svg``.
        size: Width and height in inches.

    Returns:
        Both paths.

    Raises:
        InputError: matplotlib is not installed.
    """
    dark = path.with_name(f"{path.stem}-dark{path.suffix}")
    for file, theme in ((path, LIGHT), (dark, DARK)):
        file.write_bytes(_drawn(draw, theme, size, "svg"))
    return path, dark


def save_png(draw: DrawFigure, path: Path, *, size: tuple[float, float]) -> None:
    """Write a figure on white, for places that show no SVG.

    Args:
        draw: Draws on an empty figure.
        path: The file.
        size: Width and height in inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    path.write_bytes(_drawn(draw, LIGHT, size, "png", facecolor="white", dpi=150))


def svg(draw: Draw, *, size: tuple[float, float] = (4.6, 3.2)) -> str:
    """A plot as an ``<svg>`` element for a page, which gives the colours as CSS variables.

    Args:
        draw: Draws on empty axes.
        size: Width and height in inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    return figure_svg(lambda figure: draw(figure.add_subplot()), size=size)


def figure_svg(
    draw: DrawFigure, *, size: tuple[float, float], layout: Layout = "constrained"
) -> str:
    """``svg`` of a figure with any number of axes.

    Args:
        draw: Draws on an empty figure.
        size: Width and height in inches.
        layout: ``None`` if all axes are put in their places.

    Raises:
        InputError: matplotlib is not installed.
    """
    text = _drawn(draw, LIGHT, size, "svg", layout=layout).decode()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # the same in every plot of a page
    for color, name in LIGHT.names().items():
        text = text.replace(color, f"var({name})")
    return text


def lines(axes: "Axes", series: Mapping[str, Sequence[Point]], *, xlabel: str, ylabel: str) -> None:
    """Lines with markers, and error bars where a point has ends.

    Args:
        axes: Where to draw.
        series: Name to points ``(x, y, low, high)``; the last two are ``None`` where a point has no
            error bar.
        xlabel: Of the horizontal axis.
        ylabel: Of the vertical axis, which starts at zero unless all values are close together.
    """
    for index, (name, points) in enumerate(series.items()):
        x, y, low, high = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        below = [0.0 if end is None else v - end for v, end in zip(y, low, strict=True)]
        above = [0.0 if end is None else end - v for v, end in zip(y, high, strict=True)]
        bars = [below, above] if any(below + above) else None
        marker = MARKERS[index % len(MARKERS)]
        axes.errorbar(x, y, yerr=bars, marker=marker, markersize=4.5, capsize=2.5, label=name)
    xs = sorted({point[0] for points in series.values() for point in points})
    if len(xs) <= TICKS_AT_POINTS:
        axes.set_xticks(xs)
    ys = [point[1] for points in series.values() for point in points]
    if ys and min(ys) <= max(ys) / 2:
        axes.set_ylim(bottom=min(0, *ys))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _legend(axes, list(series))


def bars(
    axes: "Axes",
    groups: Mapping[str, Mapping[str, float]],
    *,
    ylabel: str,
    reference: float | None = None,
) -> None:
    """Groups of bars with their values written at them.

    Args:
        axes: Where to draw.
        groups: Group to label to value. Equal labels have equal colours in all groups.
        ylabel: Of the vertical axis.
        reference: Where a dashed line is drawn, such as 1 for ratios.
    """
    labels = list(dict.fromkeys(label for values in groups.values() for label in values))
    width = 1 / (max(map(len, groups.values()), default=0) + 1)
    for index, label in enumerate(labels):
        places, values = [], []
        for place, group in enumerate(groups.values()):
            if label in group:
                offset = list(group).index(label) - (len(group) - 1) / 2
                places.append(place + width * offset)
                values.append(group[label])
        color = f"C{index % len(LIGHT.series)}"
        drawn = axes.bar(places, values, 0.92 * width, label=label, color=color)
        written = [significant(value) for value in values]
        axes.bar_label(drawn, written, padding=2, fontsize=8)
    if reference is not None:
        axes.axhline(reference, color=axes.spines["left"].get_edgecolor(), lw=1, ls="--")
    axes.set_xticks(range(len(groups)), _wrapped(axes, list(groups)))
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)
    axes.set(ylabel=ylabel)
    _legend(axes, labels)


def _legend(axes: "Axes", names: Sequence[str]) -> None:
    """Above the axes, where it hides nothing; in columns if the names are short."""
    if len(names) < 2:
        return
    entry = POINTS_PER_LETTER * max(map(len, names)) + 32
    columns = max(1, min(len(names), int(_width(axes) / entry)))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=columns, borderaxespad=0.2)


def _wrapped(axes: "Axes", names: Sequence[str]) -> list[str]:
    """Names of groups in lines as wide as a group."""
    letters = max(8, int(_width(axes) / 1.2 / POINTS_PER_LETTER / max(len(names), 1)))
    return [textwrap.fill(name, letters) for name in names]


def _width(axes: "Axes") -> float:
    """Of the figure, in points."""
    return 72 * axes.figure.bbox.width / axes.figure.dpi


def _drawn(
    draw: DrawFigure,
    theme: Theme,
    size: tuple[float, float],
    kind: str,
    *,
    layout: Layout = "constrained",
    **options: Any,
) -> bytes:
    """The file. No date and no random identifier is in it."""
    check_installed("matplotlib")
    import matplotlib
    from matplotlib.figure import Figure

    file = io.BytesIO()
    nameless = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(_style(theme)):
        figure = Figure(figsize=size, layout=layout)
        draw(figure)
        figure.savefig(file, format=kind, metadata=nameless, **options)
    return file.getvalue()


def _style(theme: Theme) -> dict[Any, Any]:
    from cycler import cycler

    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "mbt_fast",
        "font.size": 9,
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
        "text.parse_math": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "text.color": theme.text,
        "axes.labelcolor": theme.text,
        "axes.edgecolor": theme.muted,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=theme.series),
        "grid.color": theme.grid,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "lines.linewidth": 1.8,
        "legend.frameon": False,
        "legend.handlelength": 1.6,
        "legend.columnspacing": 1.4,
    }
