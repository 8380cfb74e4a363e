"""Measure, gate and record: ``python -m benchmarks.run --out benchmarks/results/ENVIRONMENT``.

Runs the correctness tests that guard the entries, measures the machine's ceilings, then every entry
for this device, and writes one document for each. On two CPU cores that takes about 25 minutes.

    --list               what there is to measure, against whom
    --only layer model   some entries
    --seconds 300        less time for all of them together
    --compare DIR        the ratios beside those of earlier documents
    --shared             others are at work here: one thread, its own time on the CPU
    --smoke              every entry on tiny shapes, untimed in effect; no tests, nothing to report
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import registry
from benchmarks.case import Scope
from benchmarks.ceilings import measure_ceilings
from benchmarks.compare import compare, earlier
from benchmarks.environment import stamp
from benchmarks.gate import gate_of, read_reports, refusals, run_guards
from benchmarks.measure import Timing, measure_all
from benchmarks.record import Ceilings, Document, Gate, Record, save
from mbt_fast import native


def main() -> int:
    """Run; the exit code says whether all that was measured may be reported."""
    args = _parser().parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.list:
        print(listing())
        return 0
    if args.shared:
        torch.set_num_threads(1)
    entries = chosen(args.only, device)
    environment = stamp()
    outcomes = {}
    if args.junit:
        outcomes = read_reports(args.junit)
    elif not args.smoke:
        outcomes = run_guards({file for e in entries for file in e.guards_on(device.type)})
    ceilings = measure_ceilings(device, smoke=args.smoke)
    total = sum(entry.seconds[device.type] for entry in entries)
    scale = args.seconds / total if args.seconds else 1.0
    reportable = True
    for entry in entries:
        guards = entry.guards_on(device.type)
        gate = gate_of(guards, outcomes, environment["commit"], environment["tree"])
        timing = _timing(args, device, scale * entry.seconds[device.type])
        document = measure_entry(entry, timing, ceilings, gate, environment, smoke=args.smoke)
        if args.out:
            save(document, args.out / f"{entry.name}.json")
        if args.compare and (before := earlier(args.compare, entry.name)):
            print(*compare(document, before), sep="\n")
        reasons = refusals(document)
        reportable &= not reasons
        print(*(f"{entry.name} must not be reported: {reason}" for reason in reasons), sep="\n")
    return 0 if reportable or args.smoke else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the documents")
    parser.add_argument("--only", nargs="+", metavar="ENTRY", help="some entries")
    parser.add_argument("--seconds", type=float, help="for all entries together")
    parser.add_argument("--compare", type=Path, metavar="PATH", help="earlier documents")
    parser.add_argument("--junit", nargs="+", type=Path, help="pytest's reports on the guards")
    parser.add_argument("--shared", action="store_true", help="others are at work here")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes")
    parser.add_argument("--list", action="store_true", help="print the registry")
    return parser


def chosen(names: Sequence[str] | None, device: torch.device) -> list[registry.Entry]:
    """The entries of these names, or all that are for the device."""
    if names:
        return [registry.entry(name) for name in names]
    return [entry for entry in registry.ENTRIES if device.type in entry.seconds]


def _timing(args: argparse.Namespace, device: torch.device, seconds: float) -> Timing:
    if args.smoke:
        return Timing(device=device, seconds=float("inf"), min_rounds=2, max_rounds=2)
    clock = time.process_time if args.shared else time.perf_counter
    return Timing(device=device, seconds=seconds, clock=clock)


def measure_entry(
    entry: registry.Entry,
    timing: Timing,
    ceilings: Ceilings,
    gate: Gate | None,
    environment: dict[str, object],
    *,
    smoke: bool = False,
) -> Document:
    """The document of one entry; prints a line per record."""
    module = importlib.import_module(entry.module)
    cases = list(module.cases(Scope(timing.device, smoke)))
    load = [os.getloadavg()[0]]
    records = []
    for record in measure_all(entry.name, cases, timing, ceilings):
        records.append(record)
        print(line(record), flush=True)
    load.append(os.getloadavg()[0])
    return Document(
        environment=environment,
        command=" ".join(["python -m benchmarks.run", *sys.argv[1:]]),
        conditions={
            "threads": torch.get_num_threads(),
            "instruction_set": None if native.why_no_cpu_kernels() else native.instruction_set(),
            "load_average": load,
        },
        ceilings=ceilings,
        gate=gate,
        fits=module.fits(records) if hasattr(module, "fits") else [],
        records=records,
    )


def line(record: Record) -> str:
    """One record as text."""
    head = f"{record.entry:<15} {record.case:<29} {record.mode:<8} {record.dtype:<8}"
    head += f" {record.variant:<22}"
    if record.error:
        return f"{head} {record.error[:90]}"
    parts = []
    if record.ms:
        parts.append(f"{record.ms.median:10.3f} ms")
    if record.ratio:
        parts.append(f"{record.ratio.median:5.2f}x")
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
