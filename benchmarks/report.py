"""Records as blocks of the README, as ``docs/backends.md``, and as one page.

python -m benchmarks.report --readme        what stands between the README's markers, and its plot
python -m benchmarks.report --html FILE     every record of the newest machine, or of --results DIR
python -m benchmarks.report --backends      print docs/backends.md
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.machine import info
from mbt_fast import dispatch
from mbt_fast.profiling import page, plots

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
AHEAD = RESULTS / "aot" / "triton.json"
VERIFIED = ROOT / "kernels" / "verified.json"
DTYPES = ("bfloat16", "float32")
GAINS: dict[str, dict[str, Any]] = {  # what the README shows, and of which records
    "attention, forward": {"case": "MBT-B", "mode": "forward"},
    "attention, backward": {"case": "MBT-B", "mode": "backward"},
    "fusion layer, forward": {"case": "fusion layer", "mode": "forward"},
    "model, forward": {"case": "model", "mode": "forward"},
    "training step": {"case": "model", "mode": "training step"},
}


class Spread(NamedTuple):
    """The median over several runs, and the ends."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of one value or more."""
        found = list(values)
        return cls(median(found), min(found), max(found))

    def __str__(self) -> str:
        """``1.82 [1.79-1.85]``, three digits; of one run the value alone."""
        middle, *ends = (f"{value:.3g}" for value in self)
        return middle if self.low == self.high else f"{middle} [{'-'.join(ends)}]"


@dataclass(frozen=True)
class Row:
    """One benchmark of one machine: its ``extra_info`` in every run."""

    name: str
    runs: list[dict[str, Any]]

    def __getitem__(self, fact: str) -> Any:
        """A fact that is the same in every run; ``None`` where there is none."""
        return self.runs[0].get(fact)

    @property
    def ratio(self) -> Spread:
        """How many times faster ours is than the baseline."""
        return self.times_faster(self["baseline"])

    def times_faster(self, other: str) -> Spread:
        """By the quickest fifths of the rounds."""
        return Spread.of(run["times_faster"][other]["quick"] for run in self.runs)

    def ms(self, variant: str = "ours") -> Spread:
        """Milliseconds of one call."""
        return Spread.of(run["ms"][variant]["quick"] for run in self.runs)


@dataclass(frozen=True)
class Results:
    """All files that pytest-benchmark wrote on one machine."""

    folder: Path
    machine: dict[str, Any]
    commits: list[str]
    date: str
    ceilings: dict[str, dict[str, float]]
    rows: list[Row]

    def select(self, **facts: Any) -> list[Row]:
        """Rows with these facts."""
        return [row for row in self.rows if all(row[k] == v for k, v in facts.items())]

    @property
    def conditions(self) -> str:
        """One line: machine, versions, statistic, commits."""
        machine, runs = self.machine, max(len(row.runs) for row in self.rows)
        threads = f"{machine['threads']} CPU threads, {machine['instruction_set']}"
        return (
            f"{machine['device']}, {threads}, torch {machine['torch']}; interleaved rounds, mean "
            f"of the quickest fifth, median of {runs} run{'s' * (runs > 1)}; {self.date[:10]}, "
            f"commit {', '.join(self.commits)}"
        )


def read(folder: Path) -> Results:
    """All records of a folder.

    Raises:
        FileNotFoundError: It has none.
    """
    documents = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not documents:
        raise FileNotFoundError(f"results must hold records of pytest-benchmark, got {folder}")
    runs: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        for benchmark in document["benchmarks"]:
            runs.setdefault(benchmark["fullname"], []).append(benchmark["extra_info"])
    newest = max(documents, key=lambda document: document["datetime"])
    return Results(
        folder=folder,
        machine=newest["machine_info"],
        commits=sorted({document["commit_info"]["id"][:10] for document in documents}),
        date=newest["datetime"],
        ceilings=newest["ceilings"],
        rows=[Row(name, found) for name, found in runs.items()],
    )


def all_results(root: Path = RESULTS) -> list[Results]:
    """Of every machine, the newest first."""
    folders = {path.parent for path in root.glob("*/*.json")} - {AHEAD.parent}
    return sorted(map(read, folders), key=lambda results: results.date, reverse=True)


# What is gained


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
    light, dark = (_relative(path) for path in _plot_files(folder))
    alt = escape(f"Times as fast as stock PyTorch: {values}.", quote=True)
    return (
        f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'<img src="{light}" width="640" alt="{alt}">\n</picture>\n\n'
        f"MBT-B, one clip; the training step is MBT-S. {results.conditions}. "
        f"Records: [{folder.name}]({_relative(folder)}).\n"
    )


def draw_gains(results: Results, axes: Any) -> None:
    """Bars, and a line at 1."""
    plots.bars(axes, gains(results), ylabel="times as fast as stock PyTorch", reference=1.0)


def _plot_files(folder: Path) -> tuple[Path, Path]:
    return folder / "speed.svg", folder / "speed-dark.svg"


# Which hardware


STOCK = "stock PyTorch"


class Hardware(NamedTuple):
    """A row of the table: a CPU's instruction set, or the compute capability of a GPU."""

    name: str
    instruction_set: str | None = None
    capability: tuple[int, int] | None = None


HARDWARE = (
    Hardware("x86-64 with AVX2", instruction_set="avx2"),
    Hardware("x86-64 with AVX-512", instruction_set="avx512"),
    Hardware("x86-64 with AVX512-BF16", instruction_set="avx512_bf16"),
    Hardware("x86-64 with AMX", instruction_set="amx"),
    Hardware("A100 (sm_80)", capability=(8, 0)),
    Hardware("H100, H200 (sm_90)", capability=(9, 0)),
    Hardware("B200 (sm_100)", capability=(10, 0)),
)


def hardware_block(everyone: Sequence[Results]) -> str:
    """Which hardware has kernels, how they were verified, and what ``auto`` takes there."""
    lines = [
        "| hardware | forward | backward | verified | `auto` takes |",
        "|---|---|---|---|---|",
    ]
    for hardware in HARDWARE:
        rows = [row for row in dispatch.BACKENDS if _serves(row, hardware)]
        kernels = "; ".join(f"{_ops(row)} (`{row.name}`)" for row in rows)
        taken = "; ".join(filter(None, (_taken_by_auto(row, hardware) for row in rows)))
        cells = [hardware.name, kernels, kernels, _verified(hardware, everyone), taken or STOCK]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"| any other device of PyTorch | {STOCK} | {STOCK} | tested | {STOCK} |")
    return "\n".join(lines) + "\n"


def backends_page(everyone: Sequence[Results]) -> str:
    """``docs/backends.md``."""
    return (
        "# Backends\n\n"
        "Generated from the dispatch table, the records of measurements and the records of GPU "
        "suites by `python -m benchmarks.report --backends`. `mbt-fast info` says which of them "
        "run on your machine, and `mbt_fast.dispatch.explain` which one runs a call.\n\n"
        f"{hardware_block(everyone)}"
    )


def _serves(row: dispatch.Backend, hardware: Hardware) -> bool:
    if hardware.capability is None:
        return row.device_type == "cpu" and row.name == "cpu"
    if row.name not in ("cuda", "triton"):
        return False
    return row.major in (None, hardware.capability[0])


def _ops(row: dispatch.Backend) -> str:
    return "all ops" if "add_layer_norm" in row.ops else "attention"


def _taken_by_auto(row: dispatch.Backend, hardware: Hardware) -> str:
    """The ops for which the table has a measurement, and in which dtypes if not in all."""
    if row.unmeasured:
        return ""
    if hardware.instruction_set in _never_run():
        return f"as with AVX-512, but {STOCK} for attention in bfloat16"
    layer = [
        op if found.keys() == row.dtypes else f"{op} in {', '.join(map(_short, found))}"
        for op, found in row.wins_in.items()
        if found
    ]
    return f"{', '.join(['attention', *layer])} (`{row.name}`)"


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _never_run() -> set[str]:
    return {name for name in info()["cpu kernels"] if name != "in use"}


def _verified(hardware: Hardware, everyone: Sequence[Results]) -> str:
    if hardware.capability is None:
        if hardware.instruction_set in _never_run():
            return info()["cpu kernels"][hardware.instruction_set]
        measured = [
            f"[{results.machine['device']}]({_relative(results.folder)})"
            for results in everyone
            if results.machine["instruction_set"] == hardware.instruction_set
        ]
        return "; ".join(["tested", *(f"measured on {name}" for name in measured)])
    passed = [
        f"{', '.join(entry['sources'])} on {entry['device']}, {entry['date']}"
        for entry in json.loads(VERIFIED.read_text())
        if tuple(entry["capability"]) == hardware.capability
    ]
    number = "".join(map(str, hardware.capability))
    ahead = [n for n in json.loads(AHEAD.read_text())["kernels"] if n.endswith(f"-sm_{number}")]
    emulated = ["CUDA on emulated instructions"] if hardware.capability[0] == 9 else []
    untried = [] if passed else ["never run there"]
    interpreted = f"Triton interpreted, and {len(ahead)} configurations compiled ahead"
    return "; ".join([*passed, *untried, *emulated, interpreted])


# README and page


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
        lines.append(
            [name, "ours", str(row.ms()), "", _rate(row, "gflops"), _rate(row, "gb_per_s")]
        )
        lines[-1].append(_mebibytes(row, "ours"))
        for other in row["times_faster"]:
            ratio = f"{row.times_faster(other)}{' (baseline)' * (other == row['baseline'])}"
            lines.append([name, other, str(row.ms(other)), ratio, "", "", _mebibytes(row, other)])
        lines += [[name, other, "", reason, "", "", ""] for other, reason in row["not_run"].items()]
    return headers, lines


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
            way: [(row["value"], *row.ms(way)) for row in found if way in row["ms"]]
            for way in found[0]["ms"]
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


def _relative(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--readme", action="store_true", help="rewrite the README's blocks")
    parser.add_argument("--html", type=Path, help="write the page")
    parser.add_argument("--backends", action="store_true", help="print docs/backends.md")
    parser.add_argument("--results", type=Path, help="the machine; by default the newest records")
    args = parser.parse_args(arguments)
    newest = next((results.folder for results in all_results()), None)
    folder = args.results.resolve() if args.results else newest
    if args.readme:
        write_readme(folder)
    if args.html:
        if folder is None:
            parser.error(f"results must hold records, got none in {RESULTS}")
        args.html.write_text(html(read(folder)))
    if args.backends:
        print(backends_page(all_results()), end="")


if __name__ == "__main__":
    main()
