"""Read what pytest-benchmark wrote: files of several runs, as one row per benchmark."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
AHEAD = RESULTS / "aot" / "triton.json"
AV_DIGITS = RESULTS / "av_digits"  # what models learn, see examples/av_digits


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
            if "ms" in benchmark["extra_info"]:  # not of one that was interrupted
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
    folders = {path.parent for path in root.glob("*/*.json")} - {AHEAD.parent, AV_DIGITS}
    return sorted(map(read, folders), key=lambda results: results.date, reverse=True)


def newest_of_models(everyone: Iterable[Results]) -> Path | None:
    """The folder of the newest machine on which models were measured, which the README shows."""
    return next((results.folder for results in everyone if results.select(case="model")), None)


def relative(path: Path) -> str:
    """The path for a link of the README; of files elsewhere the whole one."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
