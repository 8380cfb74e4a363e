"""Records as blocks of the README, and as one page.

python -m benchmarks.report --readme        what stands between the README's markers, and its plot
python -m benchmarks.report --html FILE     every record of the newest machine, or of --results DIR
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.hardware import hardware_block
from benchmarks.records import (
    RESULTS,
    ROOT,
    Results,
    Row,
    all_results,
    newest_of_models,
    read,
    relative,
)
from mbt_fast.profiling import page, plots

README = ROOT / "README.md"
DTYPES = ("bfloat16", "float32")
GAINS: dict[str, dict[str, Any]] = {  # what the README shows, and of which records
    "attention, forward": {"case": "MBT-B", "mode": "forward"},
    "attention, backward": {"case": "MBT-B", "mode": "backward"},
    "fusion layer, forward": {"case": "fusion layer", "mode": "forward"},
    "model, forward": {"case": "model", "mode": "forward"},
    "training step": {"case": "model", "mode": "training step"},
}


def gains(results: Results) -> dict[str, dict[str, float]]:
    """By what was measured and dtype: how many times faster than stock PyTorch, one clip."""
    found: dict[str, dict[str, float]] = {}
    for name, facts in GAINS.items():
        for dtype in DTYPES:
            rows = results.select(**facts, dtype=dtype, threads=results.machine["threads"])
            for row in rows:
                if row["shape"]["batch"] == 1:
                    found.setdefault(name, {}).setdefault(dtype, row.ratio.median)
    return found


def speed_block(folder: Path | None) -> str:
    """The plot of what is gained, for light and dark pages, and its conditions."""
    if folder is None:
        return "Not measured yet: `make bench` writes records.\n"
    results = read(folder)
    values = "; ".join(
        f"{name} {', '.join(f'{value:.2f} in {dtype}' for dtype, value in of.items())}"
        for name, of in gains(results).items()
    )
    light, dark = (relative(path) for path in _plot_files(folder))
    alt = escape(f"Times as fast as stock PyTorch: {values}.", quote=True)
    return (
        f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'<img src="{light}" width="640" alt="{alt}">\n</picture>\n\n'
        f"MBT-B, one clip; the training step is MBT-S. {results.conditions}. "
        f"Records: [{folder.name}]({relative(folder)}).\n"
    )


def draw_gains(results: Results, axes: Any) -> None:
    """Bars, and a line at 1."""
    plots.bars(axes, gains(results), ylabel="times as fast as stock PyTorch", reference=1.0)


def _plot_files(folder: Path) -> tuple[Path, Path]:
    return folder / "speed.svg", folder / "speed-dark.svg"


def blocks(folder: Path | None, everyone: Sequence[Results]) -> dict[str, str]:
    """Every generated part of the README, by the name in its markers."""
    return {"speed": speed_block(folder), "hardware": hardware_block(everyone)}


def write_readme(folder: Path | None, readme: Path = README) -> None:
    """Replace what stands between the markers, and draw the plot."""
    text = readme.read_text()
    for name, block in blocks(folder, all_results()).items():
        text = replace_block(text, name, block)
    if folder is not None:
        plots.save_plot(partial(draw_gains, read(folder)), _plot_files(folder)[0], size=(7.2, 3.4))
    readme.write_text(text)


def replace_block(text: str, name: str, block: str) -> str:
    """The text with another block between the markers of that name.

    Raises:
        ValueError: It has no such markers.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"README must have the markers of {name!r}, got none")
    return head + begin + block + end + tail


def html(results: Results) -> str:
    """One page: what is gained, then every record."""
    parts = [page.Section("What is gained", plots=[_svg(partial(draw_gains, results))])]
    parts.append(page.Section("Ceilings", CEILINGS_ARE, table=_ceilings_table(results)))
    for module, rows in groupby(results.rows, key=lambda row: row.name.partition("::")[0]):
        of_module = list(rows)
        title = Path(module).stem.removeprefix("bench_").replace("_", " ")
        curves = [_svg(draw) for draw in curves_of(of_module)]
        parts.append(page.Section(title, table=table_of(of_module), plots=curves))
    parts.append(page.Section("Counted", table=counts_of(results.rows)))
    return page.render("Benchmarks of mbt_fast", results.conditions, parts)


CEILINGS_ARE = "Best rates of torch's square matrix product (GFLOP/s) and of its copy (GB/s)."


def _ceilings_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """By number of threads."""
    names = sorted({name for rates in results.ceilings.values() for name in rates})
    rows = [
        [threads, *(f"{rates[name]:.0f}" if name in rates else "" for name in names)]
        for threads, rates in results.ceilings.items()
    ]
    return ["threads", *names], rows


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """A line for each variant of each benchmark."""
    headers = ["benchmark", "variant", "ms", "ours is times as fast", "GFLOP/s", "GB/s", "MiB"]
    lines = []
    for row in rows:
        name = f"{row.name.rpartition('::')[2]}, {row['threads']} threads"
        rates = [_rate(row, "gflops"), _rate(row, "gb_per_s"), _mebibytes(row, "ours")]
        lines.append([name, "ours", str(row.ms()), "", *rates])
        for other in row["times_faster"]:
            ratio = f"{row.times_faster(other)}{' (baseline)' * (other == row['baseline'])}"
            lines.append([name, other, str(row.ms(other)), ratio, "", "", _mebibytes(row, other)])
        lines += [[name, other, "", reason, "", "", ""] for other, reason in row["not_run"].items()]
    return headers, lines


def counts_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """What is counted instead of timed, by variant."""
    names = {
        "saved_bytes": "bytes kept for the backward",
        "operators": "operators",
        "python_calls": "Python calls of the library",
        "flops_by_variant": "FLOPs",
    }
    lines = [
        [row.name.rpartition("::")[2], said, variant, f"{value:,}"]
        for row in rows
        for name, said in names.items()
        for variant, value in (row[name] or {}).items()
    ]
    return ["benchmark", "counted", "variant", "number"], lines


def _rate(row: Row, name: str) -> str:
    return f"{row[name]:.0f}" if row[name] else ""


def _mebibytes(row: Row, variant: str) -> str:
    peak = (row["peak_memory"] or {}).get(variant)
    return "" if peak is None else f"{peak / 2**20:.0f}"


def curves_of(rows: Sequence[Row]) -> list[Callable[[Any], None]]:
    """Milliseconds along each axis of the sweeps, and ratios by the length of short streams."""
    draws: list[Callable[[Any], None]] = []
    for axis, points in groupby((row for row in rows if row["value"] is not None), _case):
        found = list(points)
        series = {
            variant: [(row["value"], *row.ms(variant)) for row in found if variant in row["ms"]]
            for variant in found[0]["ms"]
        }
        draws.append(partial(plots.lines, series=series, xlabel=axis, ylabel="ms"))
    lengths: dict[str, list[Any]] = {}
    for row in rows:
        if row["case"] == "short streams":
            name = f"{row['mode']}, {row['dtype']}, batch {row['shape']['batch']}"
            lengths.setdefault(name, []).append((row["shape"]["rows"][0], *row.ratio))
    if lengths:
        x, y = "rows of each stream", "times as fast as sdpa"
        draws.append(partial(plots.lines, series=lengths, xlabel=x, ylabel=y))
    return draws


def _case(row: Row) -> str:
    return row["case"]


def _svg(draw: Callable[[Any], None]) -> str:
    return plots.svg(draw, size=(7.2, 3.4))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--readme", action="store_true", help="rewrite the README's blocks")
    parser.add_argument("--html", type=Path, help="write the page")
    parser.add_argument("--results", type=Path, help="the machine; by default the newest records")
    args = parser.parse_args(arguments)
    folder = args.results.resolve() if args.results else newest_of_models(all_results())
    if args.readme:
        write_readme(folder)
    if args.html:
        if folder is None:
            parser.error(f"results must hold records, got none in {RESULTS}")
        args.html.write_text(html(read(folder)))


if __name__ == "__main__":
    main()
