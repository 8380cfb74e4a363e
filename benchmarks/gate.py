"""No speed-up without correctness: the tests that guard an entry, and who may report its numbers.

``benchmarks.run`` runs the guards of its entries, or reads what pytest wrote about them, and keeps
the outcome in each document. Reports and the README take documents from ``load_green``, which
refuses one whose guards are missing, were red, or were of other sources.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from benchmarks.environment import tree_hash
from benchmarks.record import Document, Gate, load

ROOT = Path(__file__).parents[1]


class NotGreen(Exception):
    """A document whose speed-ups must not be reported."""


class Outcome(NamedTuple):
    """Of the tests of one file."""

    passed: int = 0
    failed: int = 0


def load_green(path: Path) -> Document:
    """The document, if its speed-ups may be reported.

    Raises:
        NotGreen: They may not; says why.
        TypeError: As ``record.load``.
        ValueError: Likewise.
    """
    document = load(path)
    reasons = refusals(document)
    if reasons:
        raise NotGreen(f"{path.name} must not be reported: {'; '.join(reasons)}")
    return document


def refusals(document: Document) -> list[str]:
    """Why a document's speed-ups must not be reported; empty if they may."""
    gate, environment = document.gate, document.environment
    if gate is None:
        return ["the tests that guard it were not run"]
    reasons = []
    if gate.failed or not gate.passed:
        reasons.append(f"of the tests that guard it {gate.passed} passed and {gate.failed} failed")
    if gate.commit != environment["commit"] or gate.tree != environment["tree"]:
        reasons.append("the tests that guard it were run at another commit")
    if not re.fullmatch("[0-9a-f]{40}", environment["commit"] or ""):
        reasons.append(f"it was measured at no commit: {environment['commit']}")
    return reasons


def run_guards(files: Iterable[str]) -> dict[str, Outcome]:
    """Run test files in a process of its own; the outcome of each."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *pytest_options(),
        ]
        subprocess.run([*command, f"--junitxml={report}", *sorted(files)], cwd=ROOT, check=False)
        return read_reports([report])


def pytest_options() -> list[str]:
    """What puts the hash of the sources into pytest's report."""
    return ["-o", f"junit_suite_name={tree_hash()}"]


def read_reports(reports: Sequence[Path]) -> dict[str, Outcome]:
    """The outcome of each test file, from pytest's reports on the present sources.

    Where one of them is missing nothing counts: the others do not say what it would have held.

    Raises:
        NotGreen: A report is of other sources.
    """
    outcomes: dict[str, Outcome] = {}
    if not all(report.exists() for report in reports):
        return outcomes
    for report in reports:
        suite = ElementTree.parse(report).getroot().find("testsuite")
        if suite is None or suite.get("name") != tree_hash():
            raise NotGreen(f"{report.name} must be of the present sources, and is of others")
        for case in suite.iter("testcase"):
            parts = (case.get("classname") or case.get("name") or "").split(".")
            file = "/".join(parts[:2]) + ".py"
            bad = case.find("failure") is not None or case.find("error") is not None
            good = not bad and case.find("skipped") is None
            before = outcomes.get(file, Outcome())
            outcomes[file] = Outcome(before.passed + good, before.failed + bad)
    return outcomes


def gate_of(
    guards: Sequence[str], outcomes: Mapping[str, Outcome], commit: str | None, tree: str
) -> Gate | None:
    """The gate of an entry, if every file that guards it was run."""
    if not all(name in outcomes for name in guards):
        return None
    found = [outcomes[name] for name in guards]
    return Gate(
        tests=list(guards),
        passed=sum(outcome.passed for outcome in found),
        failed=sum(outcome.failed for outcome in found),
        commit=commit,
        tree=tree,
    )
