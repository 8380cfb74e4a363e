"""A folder of records: what may be reported, what may not and why, and where a number is from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import registry
from benchmarks.gate import NotGreen, load_green
from benchmarks.record import Document, Spread

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "results"
CPUS = {
    "Zen 5": RECORDS / "cpu-epyc-zen5-2cores-torch213",
    "Zen 4": RECORDS / "cpu-epyc-zen4-2cores-torch213",
}
FOLDER = CPUS["Zen 5"]  # of the README's plots, and of the page unless another is asked for
AHEAD = RECORDS / "aot" / "triton.json"
PROFILE = "profile.json"
AGAIN = "again"

Json = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """What a folder holds.

    Attributes:
        folder: Where it is.
        documents: By entry, those that the gate lets pass.
        refused: By entry, why not; an entry without a file is in neither.
        again: Those of a second run, in the folder ``again``, made to see whether ratios hold.
        profile: Records of ``mbt-fast profile``, none if there is no such file.
        tolerance: By name of the file, what ``benchmarks.tolerance`` counted.
        ahead: What ``benchmarks.compile_ahead`` recorded; the same for all machines.
    """

    folder: Path
    documents: dict[str, Document]
    refused: dict[str, str]
    again: dict[str, Document]
    profile: list[Json]
    tolerance: dict[str, Json]
    ahead: Json

    def green(self, name: str) -> Document:
        """The document of an entry.

        Raises:
            NotGreen: There is none that may be reported; says why.
        """
        if name not in self.documents:
            raise NotGreen(f"{name}.json: {self.missing(name)}")
        return self.documents[name]

    def source(self, name: str) -> str:
        """File, commit, date and machine of an entry's numbers, for the line under them."""
        document = self.documents[name]
        environment, conditions = document.environment, document.conditions
        threads = conditions["threads"]
        said = [
            f"Record: {name}.json",
            f"commit {environment['commit'][:10]}",
            environment["date"],
            environment["device"],
            f"{threads} CPU threads",
            *filter(None, [conditions["instruction_set"]]),
            f"torch {environment['torch']}",
            document.rounds_compared,
            *document.notes,
        ]
        return ", ".join(said) + "."

    def missing(self, name: str) -> str:
        """Why there is nothing of an entry, and how to get it."""
        again = f"python -m benchmarks.run --only {name}"
        if name in self.refused:
            return f"Not shown: {self.refused[name]}. Again: {again}."
        return f"Not recorded here yet: {again}."


def read(folder: Path) -> Results:
    """All that a folder holds.

    Raises:
        NotADirectoryError: There is no such folder.
        TypeError: A document has a value of the wrong type.
        ValueError: A document is malformed.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"results must be a folder, got {folder}")
    folder = folder.resolve()
    documents, refused = _read_documents(folder)
    again, _ = _read_documents(folder / AGAIN)
    profile = folder / PROFILE
    return Results(
        folder=folder,
        documents=documents,
        refused=refused,
        again=again,
        profile=json.loads(profile.read_text()) if profile.exists() else [],
        tolerance={
            path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("tolerance_*"))
        },
        ahead=json.loads(AHEAD.read_text()),
    )


def _read_documents(folder: Path) -> tuple[dict[str, Document], dict[str, str]]:
    """By entry, the documents that the gate lets pass, and why it refuses the others."""
    documents, refused = {}, {}
    for entry in registry.ENTRIES:
        path = folder / f"{entry.name}.json"
        if path.exists():
            try:
                documents[entry.name] = load_green(path)
            except NotGreen as error:
                refused[entry.name] = str(error).partition("reported: ")[2]
    return documents, refused


def spread_text(spread: Spread, digits: int = 2) -> str:
    """``1.82 [1.79-1.85]``; without the interval where it was not recorded."""
    if spread.p20 is None or spread.p80 is None:
        return f"{spread.median:.{digits}f}"
    return f"{spread.median:.{digits}f} [{spread.p20:.{digits}f}-{spread.p80:.{digits}f}]"
