"""The page of ``mbt-fast profile``: plots of FLOPs and measurements, and the paper's Figure 3."""

from collections.abc import Mapping, Sequence
from functools import partial

from mbt_fast.profiling import figure3, plots, runs
from mbt_fast.profiling.page import Section, render
from mbt_fast.profiling.sweep import Record
from mbt_fast.profiling.sweep_table import RATIOS, UNITS, notes, series_name, table

TITLE = "What fusion costs: MBT, layer by layer"
VARIANTS = """\
bottleneck: the modalities exchange only B shared tokens (Eq. 7-9 of arXiv 2107.00135).

vanilla (own weights): pairwise attention. Each modality's tokens attend to all tokens, with the \
modality's own weights (Eq. 5-6).

vanilla (shared weights): self-attention over all tokens, with one set of weights (Eq. 4).

Fusion layer 0 is early fusion. At the number of layers only the logits meet: late fusion."""

Series = dict[str, list[plots.Point]]


def page(records: Sequence[Record], conditions: Mapping[str, str]) -> str:
    """The report as HTML. Needs the extra ``bench``."""
    counted = _plot(_lines(records, "gflops"), "GFLOPs per clip (2 per multiply-add)")
    measured = [
        _plot(series, label)
        for key, label, end in (
            ("latency_ms_quick", "ms per batch, bars: up to the median", "latency_ms_median"),
            ("peak_memory_mb", "peak memory in MB", ""),
            ("clips_per_second", "clips per second", ""),
        )
        if (series := _lines(records, key, end))
    ]
    sections = [
        Section("FLOPs", VARIANTS, plots=[counted]),
        *([Section("Measured", plots=measured)] if measured else []),
        _paper(records),
        Section(
            "All records",
            "\n\n".join([f"{UNITS} {RATIOS}", *notes(records)]),
            table=table(records, official=True),
        ),
    ]
    return render(TITLE, runs.as_lines(conditions), sections)


def _paper(records: Sequence[Record]) -> Section:
    """Figure 3, and the FLOPs of this profile in the same count."""
    said = (
        "Figure 3 of the paper: accuracy (AudioSet mini, mean and standard deviation of 3 runs), "
        f"which a profile does not measure, and cost under these conditions: {figure3.CONDITIONS}."
        "\n\nLast, the cost in this profile, counted like the paper's. The inputs may differ from "
        "the paper's: compare the shapes of the lines."
    )
    accuracy: Series = {
        fusion: [(x, mean, mean - std, mean + std) for x, (mean, std) in values.items()]
        for fusion, values in figure3.MEAN_AVERAGE_PRECISION.items()
    }
    printed: Series = {
        fusion: [(x, y, None, None) for x, y in values.items()]
        for fusion, values in figure3.GFLOPS.items()
    }
    ours: Series = {
        name: [(x, y / 2, None, None) for x, y, *_ in points]
        for name, points in _lines(records, "gflops_official").items()
    }
    drawn = [
        _plot(accuracy, "mAP in %, Figure 3"),
        _plot(printed, "GMACs per clip, Figure 3"),
        _plot(ours, "GMACs per clip, this profile"),
    ]
    return Section("Beside the paper", said, plots=drawn)


def _lines(records: Sequence[Record], key: str, end: str = "") -> Series:
    """Series name to points, of the records that have a value; ``end`` is where a bar ends."""
    series: Series = {}
    for record in records:
        if record[key] is not None:
            bar = (record[key], record[end]) if end else (None, None)
            point = (record["fusion_layer"], record[key], *bar)
            series.setdefault(series_name(record), []).append(point)
    return series


def _plot(series: Mapping[str, Sequence[plots.Point]], ylabel: str) -> str:
    return plots.svg(partial(plots.lines, series=series, xlabel="fusion layer", ylabel=ylabel))
