"""Accuracy against fusion layer and FLOPs: every seed a dot, lines through the means."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from examples.av_digits.table import SPLITS, Row, accuracy, of, products
from mbt_fast.profiling import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
Series = Mapping[str, Sequence[str]]
Value = Callable[[Row], float]

SIZE = (7.2, 3.6)
BY_LAYER = {
    "bottleneck, B = 4": ("bottleneck-0", "bottleneck-2", "bottleneck-3", "late"),
    "vanilla": ("vanilla-0", "vanilla-2", "vanilla-3", "late"),
}
BY_FLOPS = {
    "bottleneck, B = 4": ("bottleneck-0", "bottleneck-2", "bottleneck-3"),
    "vanilla": ("vanilla-0", "vanilla-2", "vanilla-3"),
    "B = 1 and 16": ("bottleneck-2-b1", "bottleneck-2-b16"),
    "vanilla, shared": ("vanilla-shared-2",),
    "late": ("late", "late-mean"),
    "one modality": ("rgb", "spectrogram"),
}


def write_figures(rows: Sequence[Row], folder: Path) -> list[str]:
    """Write ``layer.svg`` and ``flops.svg``, for light and dark pages.

    Returns:
        Markup of each, for the README of this folder.
    """
    figures: dict[str, tuple[Series, Value, str]] = {
        "layer": (BY_LAYER, _layer, "fusion layer"),
        "flops": (BY_FLOPS, _mflop, "MFLOP of a training step, for each clip"),
    }
    markup = []
    for name, (series, x, xlabel) in figures.items():
        draw = partial(_draw, rows, series, x, xlabel)
        light, dark = plots.save_figure(draw, folder / f"{name}.svg", size=SIZE)
        files = [f"../../{path.relative_to(ROOT).as_posix()}" for path in (light, dark)]
        markup.append(
            f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{files[1]}">\n'
            f'<img src="{files[0]}" width="680" alt="Accuracy of the sum against {xlabel}; the '
            f'table below has the numbers.">\n</picture>'
        )
    return markup


def _layer(row: Row) -> float:
    return float(row["model"]["fusion_layer"])


def _mflop(row: Row) -> float:
    return float(row["flops_per_clip"] / 1e6)


def _draw(
    rows: Sequence[Row],
    series: Series,
    x: Value,
    xlabel: str,
    figure: "Figure",
) -> None:
    """Seen speakers on the left, unseen ones on the right."""
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, split in ((left, SPLITS[0]), (right, SPLITS[1])):
        for index, (label, names) in enumerate(series.items()):
            groups = [group for name in names if (group := of(rows, name))]
            if groups:
                _draw_series(axes, groups, split, x, index, label)
            towers = 100 * mean(products(rows, split).values())
        for height, words in ((towers, "sound x pictures"), (10, "chance")):
            axes.axhline(height, ls=":", color="grey")
            place = {"transform": axes.get_yaxis_transform(), "fontsize": 8}
            axes.text(0.99, height + 2, words, ha="right", **place)
        axes.set(xlabel=xlabel, title=f"{split} speakers", ylim=(0, 100))
    left.set_ylabel("accuracy of the sum, %")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)


def _draw_series(
    axes: "Axes",
    groups: Sequence[Sequence[Row]],
    split: str,
    x: Value,
    index: int,
    label: str,
) -> None:
    """A dot for each run, and a line through the means of the groups."""
    groups = sorted(groups, key=lambda group: x(group[0]))
    color, marker = f"C{index}", plots.MARKERS[index]
    means = [mean(100 * accuracy(row, split) for row in group) for group in groups]
    places = [x(group[0]) for group in groups]
    axes.plot(places, means, color=color, lw=1, marker=marker, ms=6, mfc="none", label=label)
    dots = [(x(row), 100 * accuracy(row, split)) for group in groups for row in group]
    axes.plot(*zip(*dots, strict=True), marker, color=color, ms=4, alpha=0.5)
