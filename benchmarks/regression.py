"""A few ratios against the committed record, in a minute: ``python -m benchmarks.regression``.

One thread, and the time that this process itself works, so that the ratios hold on a busy machine.
Warns and never fails; what is counted exactly is asserted by tests instead.
"""

import importlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import registry
from benchmarks.allocator import keep_freed_memory
from benchmarks.case import Case, Scope, Variant
from benchmarks.compare import Change, compare, earlier
from benchmarks.environment import stamp
from benchmarks.measure import Timing, measure_case
from benchmarks.record import Ceilings, Document, Record

RESULTS = Path(__file__).parent / "results"
SECONDS = 8.0  # for each case
NOISE = 0.2  # neighbours take caches and memory, and LayerNorm waits for memory
CPU = torch.device("cpu")


class Selected(NamedTuple):
    """One case of an entry, and two of its variants."""

    entry: str
    case: str
    mode: str
    variants: tuple[str, str]


SELECTED = (
    Selected("attention", "MBT-B, 8 s", "forward", ("ours, cpu", "sdpa")),
    Selected("attention", "MBT-B, 8 s", "backward", ("ours, cpu", "sdpa")),
    Selected("layer_ops", "gelu tanh", "forward", ("ours, cpu", "torch")),
    Selected("layer_ops", "layer_norm", "forward", ("ours, cpu", "torch")),
    Selected("savings", "kept", "step", ("ours, memory minimal", "eager")),
)


def main() -> None:
    """Measure, compare, say what is beyond noise."""
    folder = recorded(stamp()["device"])
    if folder is None:
        print("no record to compare with")
        return
    keep_freed_memory()  # as the record has it
    records = [record for selected in SELECTED for record in measure(selected)]
    for text in report(records, folder):
        print(text)


def measure(selected: Selected) -> list[Record]:
    """In bfloat16, the entry's first such case on one thread."""
    module = importlib.import_module(registry.entry(selected.entry).module)
    case = next(
        case
        for case in module.cases(Scope(CPU))
        if (case.name, case.mode, case.dtype) == (selected.case, selected.mode, torch.bfloat16)
        and case.threads in (1, None)
    )
    timing = Timing(device=CPU, seconds=SECONDS, clock=time.process_time)
    case = only(case, selected.variants)
    return measure_case(selected.entry, case, timing, Ceilings(matmul_gflops={}))


def only(case: Case, names: tuple[str, ...]) -> Case:
    """The case with some of its variants."""

    def variants() -> Mapping[str, Variant]:
        found = case.variants()
        return {name: found[name] for name in names}

    return replace(case, variants=variants)


def recorded(device: str) -> Path | None:
    """The folder of results of this device, or else any of a CPU.

    Records of before CPUs were told by family and model have the beginning of the name.
    """
    folders = sorted(path.parent for path in RESULTS.glob("cpu-*/attention.json"))
    names = {folder: _document(folder, "attention").environment["device"] for folder in folders}
    same = [folder for folder, name in names.items() if device.startswith(name)]
    exact = [folder for folder in same if names[folder] == device]
    return next(iter([*exact, *same, *folders]), None)


def report(records: list[Record], folder: Path) -> Iterator[str]:
    """A line per figure, and what they come to."""
    changes: list[Change] = []
    for entry in dict.fromkeys(record.entry for record in records):
        before = _document(folder, entry)
        now = replace(before, records=[r for r in records if r.entry == entry])
        changes += compare(now, before)
    yield from (change.line(NOISE) for change in changes)
    errors = [record for record in records if record.error]
    yield from (f"! {r.entry}, {r.case}, {r.variant}: {r.error}" for r in errors)
    beyond = sum(change.beyond(NOISE) for change in changes) + len(errors)
    if beyond:
        yield f"warning: {beyond} figures are more than {NOISE:.0%} from {folder.name}"
    else:
        yield f"no ratio is more than {NOISE:.0%} from {folder.name}"


def _document(folder: Path, entry: str) -> Document:
    document = earlier(folder, entry)
    if document is None:
        raise FileNotFoundError(f"{folder.name} must have a record of {entry}, got none")
    return document


if __name__ == "__main__":
    main()
