"""The charts of the report: records and the paper's figure as lines."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mbt_fast.report.paper import Estimate, Figure3
from mbt_fast.report.records import (
    Record,
    by_series,
    has_several_backends,
    is_pairwise,
    of_one_mode,
)
from mbt_fast.report.svg import Point, Series, line_chart

X_LABEL = "fusion layer"
OFFICIAL = "vanilla (official code)"
PAIRWISE = "vanilla (own weights)"
PAPER_BOTTLENECK = "bottleneck (B = 5)"


class Chart(NamedTuple):
    """A drawing with its caption and a smaller line under the caption."""

    caption: str
    note: str
    svg: str


class _Quantity(NamedTuple):
    key: str
    caption: str
    note: str
    y_label: str
    bars: tuple[str, str] | None = None


_MEASURED = (
    _Quantity(
        key="latency_ms_median",
        caption="Latency",
        note="Median over the rounds, bars from p20 to p80; lower is better",
        y_label="ms per batch",
        bars=("latency_ms_p20", "latency_ms_p80"),
    ),
    _Quantity("peak_memory_mb", "Peak memory", "Lower is better", "MB"),
    _Quantity("clips_per_second", "Throughput", "Higher is better", "clips/s"),
)


def cost_chart(records: Sequence[Record]) -> Chart:
    """GFLOPs of one clip, each variant computed as efficiently as its definition allows."""
    records = of_one_mode(records)
    return _chart(
        "FLOPs of one clip",
        "Matrix products only; each variant as efficient as its definition allows",
        _lines(records, _styles(records), "gflops"),
        "GFLOPs (2 per multiply-add)",
    )


def measured_charts(records: Sequence[Record], all_records: Sequence[Record]) -> list[Chart]:
    """Latency, peak memory and throughput of one setting, without those nobody measured.

    Args:
        records: The records of the setting.
        all_records: Those of the whole page, so that a series looks the same in every chart.
    """
    with_backend = has_several_backends(all_records)
    styles = _styles(all_records, with_backend=with_backend)
    charts = []
    for quantity in _MEASURED:
        lines = _lines(records, styles, quantity.key, quantity.bars, with_backend=with_backend)
        if lines:
            charts.append(_chart(quantity.caption, quantity.note, lines, quantity.y_label))
    return charts


def paper_cost_charts(records: Sequence[Record], paper: Figure3) -> list[Chart]:
    """Figure 3 (right) and this profile in the same units, a multiply-add counted as one."""
    records = of_one_mode(records)
    styles = _styles(records)
    y_label = "GFLOPs (1 per multiply-add)"
    printed = [
        Series(PAPER_BOTTLENECK, _points(paper.gflops["bottleneck"]), 0),
        Series(OFFICIAL, _points(paper.gflops["vanilla"]), len(styles)),
    ]
    ours = _lines(records, styles, "gflops")
    pairwise = [record for record in records if is_pairwise(record)]
    official = _lines(pairwise, styles, "gflops_official")
    ours += [Series(OFFICIAL, line.points, len(styles)) for line in official]
    return [
        _chart("The paper", "Figure 3 (right): 784 RGB patches", printed, y_label),
        _chart("This profile", "The same count of FLOPs", list(map(_halved, ours)), y_label),
    ]


def paper_accuracy_chart(records: Sequence[Record], paper: Figure3) -> Chart:
    """Figure 3 (left): what fusing late enough, and through bottlenecks, does for accuracy."""
    vanilla = _styles(of_one_mode(records)).get(PAIRWISE, 1)
    lines = [
        Series(PAPER_BOTTLENECK, _points(paper.mean_average_precision["bottleneck"]), 0),
        Series(PAIRWISE, _points(paper.mean_average_precision["vanilla"]), vanilla),
    ]
    note = "Figure 3 (left): AudioSet mini, mean and standard deviation of 3 runs"
    return _chart("Accuracy in the paper", note, lines, "mAP in %")


def _chart(caption: str, note: str, lines: Sequence[Series], y_label: str) -> Chart:
    title = f"{caption} against the fusion layer"
    svg = line_chart(lines, title=title, x_label=X_LABEL, y_label=y_label)
    return Chart(caption, note, svg)


def _styles(records: Sequence[Record], *, with_backend: bool = False) -> dict[str, int]:
    names = by_series(records, with_backend=with_backend)
    return {name: style for style, name in enumerate(names)}


def _lines(
    records: Sequence[Record],
    styles: Mapping[str, int],
    key: str,
    bars: tuple[str, str] | None = None,
    *,
    with_backend: bool = False,
) -> list[Series]:
    """One line per series that has a value at one fusion layer at least."""
    lines = []
    for name, layers in by_series(records, with_backend=with_backend).items():
        points = tuple(
            Point(layer, record[key], *(record.get(bar) for bar in bars or ()))
            for layer, record in layers.items()
            if record.get(key) is not None
        )
        if points:
            lines.append(Series(name, points, styles[name]))
    return lines


def _points(values: Mapping[int, float] | Mapping[int, Estimate]) -> tuple[Point, ...]:
    points = []
    for layer, value in values.items():
        if isinstance(value, Estimate):
            low, high = value.mean - value.std, value.mean + value.std
            points.append(Point(layer, value.mean, low, high))
        else:
            points.append(Point(layer, value))
    return tuple(points)


def _halved(line: Series) -> Series:
    points = tuple(Point(point.x, point.y / 2) for point in line.points)
    return Series(line.name, points, line.style)
