"""Measure, gate and record: ``python -m benchmarks.run --out benchmarks/results/ENVIRONMENT``.

Runs the correctness tests that guard the entries, measures the machine's ceilings, then every entry
for this device, and writes one document for each. On a CPU their times add up to 43 minutes.

    --list               what there is to measure, against whom
    --only layer model   some entries
    --seconds 300        less time for all of them together
    --compare DIR        the ratios beside those of earlier documents
    --no-tests           a trial: without the tests nothing may be reported
    --smoke              a trial on tiny shapes
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import registry
from benchmarks.allocator import ALLOCATOR
from benchmarks.apart import new_process
from benchmarks.case import Scope
from benchmarks.ceilings import measure_ceilings
from benchmarks.compare import compare, earlier
from benchmarks.environment import stamp
from benchmarks.gate import Outcome, gate_of, read_reports, refusals, run_guards
from benchmarks.measure import Timing
from benchmarks.passes import FOR_ALL, Passes, in_turns
from benchmarks.record import Document, Record, save
from benchmarks.sample import Sample
from mbt_fast import native

PASS = 60.0  # seconds on a CPU, where that leaves the least of them; of 20 most went to warming up
MIN_PASSES = 4


def main() -> int:
    """Run; the exit code says whether all that was measured may be reported."""
    args = _parser().parse_args()
    # The profiler that counts memory would announce itself on stderr for every variant.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.list:
        print(listing())
        return 0
    entries, environment = chosen(args.only, device), stamp()
    outcomes = _outcomes(args, {file for e in entries for file in e.guards_on(device.type)})
    common: dict[str, Any] = {
        "environment": environment,
        "command": " ".join(["python -m benchmarks.run", *sys.argv[1:]]),
        "conditions": conditions(),
        "ceilings": measure_ceilings(device, smoke=args.smoke),
    }
    scale = 1.0
    if args.seconds:
        scale = args.seconds / sum(entry.seconds[device.type] for entry in entries)
    measured = []
    for entry in entries:
        guards = entry.guards_on(device.type)
        gate = gate_of(guards, outcomes, environment["commit"], environment["tree"])
        blank = Document(**common, gate=gate, records=[])
        timing = timing_of(entry, device, scale, smoke=args.smoke)
        before = earlier(args.compare, entry.name) if args.compare else None
        measured.append(Measured(entry, blank, passes_of(entry, timing, smoke=args.smoke), before))
    by_passes = {one.passes: one for one in measured}
    for passes in in_turns(list(by_passes)):
        by_passes[passes].keep(args.out)
    refused = sum(one.tell() for one in measured)
    return 1 if refused and not (args.smoke or args.no_tests) else 0


def _outcomes(args: argparse.Namespace, files: set[str]) -> dict[str, Outcome]:
    """Of the tests in these files."""
    if args.junit:
        return read_reports(args.junit)
    return {} if args.smoke or args.no_tests else run_guards(files)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the documents")
    parser.add_argument("--only", nargs="+", metavar="ENTRY", help="some entries")
    parser.add_argument("--seconds", type=float, help="for all entries together")
    parser.add_argument("--compare", type=Path, metavar="PATH", help="earlier documents")
    parser.add_argument("--junit", nargs="+", type=Path, help="pytest's reports on the guards")
    parser.add_argument("--no-tests", action="store_true", help="a trial, not to be reported")
    parser.add_argument("--smoke", action="store_true", help="a trial on tiny shapes")
    parser.add_argument("--list", action="store_true", help="print the registry")
    return parser


def chosen(names: Sequence[str] | None, device: torch.device) -> list[registry.Entry]:
    """The entries of these names, or all, that are for the device.

    Raises:
        ValueError: An entry is unknown, or for another device.
    """
    found = [registry.entry(name) for name in names] if names else list(registry.ENTRIES)
    fitting = [entry for entry in found if device.type in entry.seconds]
    if names and fitting != found:
        raise ValueError(f"--only must name entries for {device.type}, got {', '.join(names)}")
    return fitting


def timing_of(entry: registry.Entry, device: torch.device, scale: float, *, smoke: bool) -> Timing:
    """On a CPU several passes, because others work on the same host; nobody else uses a GPU."""
    timing = Timing(device=device, seconds=scale * entry.seconds[device.type])
    if smoke:
        return replace(timing, seconds=float("inf"), min_rounds=2, max_rounds=2)
    if device.type == "cpu":
        passes = max(MIN_PASSES, round(FOR_ALL * timing.seconds / PASS))
        return replace(timing, min_rounds=1, passes=passes)
    return timing


def passes_of(entry: registry.Entry, timing: Timing, *, smoke: bool) -> Passes:
    """The passes of an entry, each in a process of its own; each visit is announced."""
    scope = Scope(timing.device, smoke)
    cases = list(importlib.import_module(entry.module).cases(scope))
    return Passes(entry.name, cases, timing, partial(new_process, entry.module, scope), _announce)


def conditions() -> dict[str, object]:
    """Of a run that begins."""
    return {
        "threads": torch.get_num_threads(),
        "instruction_set": None if native.why_no_cpu_kernels() else native.instruction_set(),
        "allocator": ALLOCATOR,
        "load_average": [os.getloadavg()[0]],
    }


@dataclass
class Measured:
    """An entry, and what is known of it.

    Attributes:
        entry: Of the registry.
        document: As of the last pass.
        passes: Those to come.
        before: An earlier document, to compare with.
    """

    entry: registry.Entry
    document: Document
    passes: Passes
    before: Document | None = None

    def keep(self, out: Path | None) -> None:
        """What is known after another pass; written, if there is a folder for it."""
        module = importlib.import_module(self.entry.module)
        records = self.passes.records(self.document.ceilings)
        load = [*self.document.conditions["load_average"][:1], os.getloadavg()[0]]
        self.document = replace(
            self.document,
            conditions={**self.document.conditions, "load_average": load},
            fits=module.fits(records) if hasattr(module, "fits") else [],
            records=records,
        )
        if out:
            save(self.document, out / f"{self.entry.name}.json")

    def tell(self) -> int:
        """Print the records, the changes, and the reasons not to report them; how many of those."""
        for record in self.document.records:
            print(line(record))
        for change in compare(self.document, self.before) if self.before else []:
            print(change.line())
        reasons = refusals(self.document)
        for reason in reasons:
            print(f"{self.entry.name} must not be reported: {reason}")
        return len(reasons)


def _announce(sample: Sample) -> None:
    """What is being timed, for who waits."""
    if not sample.case.timed:
        return
    of = sample.blank
    where = f"{of.threads} threads" if of.threads else of.device
    which = f"{of.entry}, pass {len(sample.passes) + 1}: {of.case}, {of.mode}, {of.dtype}, {where}"
    print(which, file=sys.stderr, flush=True)


def line(record: Record) -> str:
    """One record as text."""
    head = f"{record.entry:<15} {record.case:<29} {record.mode:<8} {record.dtype:<8}"
    head += f" {record.variant:<22}"
    if record.error:
        return f"{head} {record.error[:90]}"
    parts = []
    if record.ms:
        parts.append(f"{record.ms.reported:10.3f} ms")
    if record.ratio:
        parts.append(f"{record.ratio.reported:5.2f}x")
    if record.uncertainty is not None:
        parts.append(f"+-{record.uncertainty:.1%}")
    if record.flops:
        parts.append(f"{record.flops / 1e9:9.2f} GFLOP")
    if record.share_of_matmul:
        parts.append(f"{record.share_of_matmul:4.0%} of matmul")
    if record.saved_memory:
        parts.append(f"keeps {record.saved_memory / 2**20:.1f} MiB")
    return " ".join([head, *parts])


def listing() -> str:
    """The registry as text."""
    lines = ["entries"]
    for entry in registry.ENTRIES:
        where = ", ".join(f"{device} {seconds:g} s" for device, seconds in entry.seconds.items())
        lines.append(f"  {entry.name:<16} {entry.measures} ({where})")
        lines.append(f"{'':<18} against {entry.baseline or 'nothing'}; guarded by")
        files = {file: None for device in entry.seconds for file in entry.guards_on(device)}
        lines += [f"{'':<20} {file}" for file in files]
    lines.append("variants that are not ours")
    lines += [f"  {name:<24} {what}" for name, what in registry.PEERS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
