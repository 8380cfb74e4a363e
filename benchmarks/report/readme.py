"""The README's plots and tables, between markers; nothing there is typed."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.record import Document
from benchmarks.report.fusion import flops_chart, latency_chart
from benchmarks.report.results import CPUS, PROFILE, ROOT, Results, read
from mbt_fast.report.charts import Chart
from mbt_fast.report.records import by_series
from mbt_fast.report.standalone import height_of, standalone

README = ROOT / "README.md"
WIDTH = 420  # two side by side on a wide screen, one above the other on a phone
SPEED = ("attention", "layer", "model", "savings")
DTYPES = ("bfloat16", "float32")

Json = dict[str, Any]


def write(results: Results, readme: Path = README) -> None:
    """Replace what stands between the markers, and write the plots."""
    text = readme.read_text()
    for name, block in blocks(results).items():
        begin, end = markers(name)
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{readme.name} must have the markers of {name}, got none")
        text = head + begin + block + end + tail
    for path, svg in plots(results).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(svg)
    readme.write_text(text)


def markers(name: str) -> tuple[str, str]:
    """What stands around a block."""
    return f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"


def blocks(results: Results) -> dict[str, str]:
    """Every generated part of the README."""
    return {name: make(results) for name, make in BLOCKS.items()}


def plots(results: Results) -> dict[Path, str]:
    """The two drawings of the first screen, by file."""
    charts = _charts(results)
    height = max(height_of(chart.svg) for _, chart in charts.values())
    return {
        results.folder / "plots" / f"{name}.svg": standalone(chart.svg, caption, height)
        for name, (caption, chart) in charts.items()
    }


def _charts(results: Results) -> dict[str, tuple[str, Chart]]:
    if not results.profile:
        raise ValueError(f"results must hold {PROFILE}, got {results.folder} without")
    return {
        "flops": ("FLOPs of one clip, MBT-B", flops_chart(results.profile)),
        "latency": ("Latency of one clip, MBT-B", latency_chart(results.profile)),
    }


def plots_block(results: Results) -> str:
    """Both plots, and the conditions under them."""
    conditions = results.profile[0]["conditions"]
    images = []
    for name, (caption, chart) in _charts(results).items():
        path = _relative(results.folder / "plots" / f"{name}.svg")
        described = chart.svg.partition("<desc>")[2].partition("</desc>")[0]
        alt = escape(f"{caption}. {described}", quote=True)
        images.append(f'<img src="{path}" width="{WIDTH}" alt="{alt}">')
    said = "; ".join(
        conditions[key]
        for key in ("input", "call", "device", "dtype", "attention", "rounds", "versions", "date")
    )
    return "\n".join([*images, "", f"{said}. Record: {_link(results, PROFILE)}.", ""])


def profile_block(results: Results) -> str:
    """GFLOPs and median latency of each fusion by fusion layer."""
    columns = by_series(results.profile)
    lines = [f"| fusion layer | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for layer in sorted({record["fusion_layer"] for record in results.profile}):
        cells = [_cell(column[layer]) for column in columns.values()]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])


def _cell(record: Any) -> str:
    return f"{record['gflops']:.1f} G, {record['latency_ms_median']:.0f} ms"


def speed_block(results: Results) -> str:
    """How many times faster than stock PyTorch the parts, a layer and the model are.

    On all CPUs with records, or on the one whose records are elsewhere.
    """
    if results.folder in CPUS.values():
        cpus = {name: read(folder) for name, folder in CPUS.items()}
    else:
        cpus = {results.green("layer").environment["device"]: results}
    columns = {name: _speed(of_cpu) for name, of_cpu in cpus.items()}
    headers = [f"{name}, {dtype}" for name in columns for dtype in DTYPES]
    lines = [
        f"| times faster than stock PyTorch | {' | '.join(headers)} |",
        f"|---|{'---|' * len(headers)}",
    ]
    for what in next(iter(columns.values())):
        cells = [ratio for column in columns.values() for ratio in column[what]]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    said = "MBT-B, one clip; interleaved rounds. Stock: torch's attention once per modality, eager."
    lines += ["", said, ""]
    lines += [f"- {_speed_conditions(name, of_cpu)}" for name, of_cpu in cpus.items()]
    return "\n".join([*lines, ""])


def _speed(results: Results) -> dict[str, list[str]]:
    """The rows of one CPU, in both dtypes."""
    attention, layer, model, savings = map(results.green, SPEED)
    mbt = {"case": "MBT-B, 8 s", "variant": "ours, cpu", "batch": 1, "threads": 2}
    whole = {"variant": "ours", "mode": "forward"}
    return {
        "attention, forward": _ratios(attention, 1, mode="forward", **mbt),
        "attention, backward": _ratios(attention, 1, mode="backward", **mbt),
        "a fusion layer, forward": _ratios(layer, 2, **whole),
        "the model, forward": _ratios(model, 2, **whole),
        "a training step of MBT-S, CLS rows only in the last layer": _ratios(
            savings, 2, case="step", variant="ours, savings"
        ),
    }


def _speed_conditions(name: str, results: Results) -> str:
    """One sentence on a CPU: what it is, when it was measured, where the records are."""
    layer = results.green("layer")
    environment, conditions = layer.environment, layer.conditions
    compiled = _ratios(layer, 2, variant="eager, compiled", mode="forward")
    links = ", ".join(_link(results, f"{entry}.json") for entry in SPEED)
    return (
        f"{name}: {environment['device']}, {conditions['threads']} threads, "
        f"{conditions['instruction_set']}, torch {environment['torch']}, {environment['date']}; "
        f"{layer.rounds_compared}; the layer under `torch.compile`: {' and '.join(compiled)}; "
        f"records: {links}."
    )


def _ratios(document: Document, digits: int, **values: Any) -> list[str]:
    """Of the record with these values, in both dtypes."""
    records = [document.find(dtype=dtype, **values) for dtype in DTYPES]
    return [f"{record.ratio.reported:.{digits}f}" if record.ratio else "" for record in records]


def _link(results: Results, name: str) -> str:
    return f"[{name}]({_relative(results.folder / name)})"


def _relative(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


BLOCKS: dict[str, Callable[[Results], str]] = {
    "plots": plots_block,
    "profile": profile_block,
    "cpu": speed_block,
}
