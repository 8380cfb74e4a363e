"""What was measured on what, how exact it is, and what the compiler makes of the kernels."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks import registry
from benchmarks.compare import NOISE, SURE, Change, compare
from benchmarks.record import Document, Record
from benchmarks.report.comparisons import by_comparison, records_table
from benchmarks.report.results import AGAIN, AHEAD, ROOT, Results
from mbt_fast.report.bars import Bar, bar_chart
from mbt_fast.report.charts import Chart
from mbt_fast.report.page import definitions, figures, section, table
from mbt_fast.report.table import milliseconds


def provenance_section(results: Results) -> str:
    """The machine, then every document: what it measures, of which commit, and its tests."""
    rows = [_document_row(results, entry) for entry in registry.ENTRIES]
    headers = ["record", "commit", "date", "tests that\nguard it"]
    body = [
        "<p>Every speed-up here comes from a record whose tests of correctness passed at the "
        "commit that was measured; a record without is refused, and says so. Variants of a "
        "comparison are timed in turns, round by round; a ratio is the baseline's time by the "
        "variant's, each the mean of its quickest fifth of the rounds, or, in older records, the "
        "median of the rounds' ratios: below each table stands which. On a CPU the rounds come in "
        "several passes, each in a process of its own, and more of them where a ratio stays "
        "unsure; behind \N{PLUS-MINUS SIGN} stands the ratio's relative standard error.</p>",
        _machine(results),
        "<p>Shares of torch's matmul and copy are shares of what torch reaches, not of what the "
        "hardware can: more than 100 % is possible.</p>",
        table(headers, [rows], "Records"),
        "<p>One command measures all of it again: <code>python -m benchmarks.run --out "
        f"{escape(_relative(results))}</code>.</p>",
    ]
    return section("What was measured, and on what", "\n".join(filter(None, body)), "what")


def _machine(results: Results) -> str:
    """Device, versions and ceilings, where all documents agree."""
    found: dict[str, dict[str, None]] = {}
    for document in results.documents.values():
        environment, ceilings = document.environment, document.ceilings
        said = {
            "device": environment["device"],
            "torch": environment["torch"],
            "instruction set": document.conditions["instruction_set"],
            "allocator": document.conditions["allocator"],
        }
        for name, value in said.items():
            if value:
                found.setdefault(name, {})[str(value)] = None
        for dtype, gflops in ceilings.matmul_gflops.items():
            found.setdefault(f"torch's matmul, {dtype}", {})[f"{gflops:.0f} GFLOP/s"] = None
        if ceilings.copy_gb_per_s:
            found.setdefault("torch's copy", {})[f"{ceilings.copy_gb_per_s:.1f} GB/s"] = None
    return definitions({name: ", ".join(values) for name, values in found.items()})


def _document_row(results: Results, entry: registry.Entry) -> list[str]:
    document = results.documents.get(entry.name)
    name = f"{entry.name}.json\n{entry.measures}"
    if document is None or document.gate is None:
        return [f"{name}\n{results.missing(entry.name)}", "", "", ""]
    environment, gate = document.environment, document.gate
    return [name, environment["commit"][:10], environment["date"], f"{gate.passed} passed"]


def parts_section(results: Results) -> str:
    """A layer of ours part by part, each with how close it comes to a ceiling."""
    heading, name = "A layer, part by part", "parts"
    document = results.documents.get(name)
    if document is None:
        said = f'<p class="note">{escape(results.missing(name))}</p>'
        return section(heading, said, name)
    groups = list(by_comparison(document.records).values())
    body = [
        "<p>Each part alone. FLOPs are held against torch's own square matrix product, bytes that "
        "must move against torch's copy, which no cache helps.</p>",
        figures(map(_parts_chart, groups)),
        records_table(groups, heading),
        f'<p class="note">{escape(results.source(name))}</p>',
    ]
    return section(heading, "\n".join(body), name)


def _parts_chart(records: Sequence[Record]) -> Chart:
    bars = [
        Bar(r.variant, r.ms.reported, _beside_ceiling(r), r.ms.p20, r.ms.p80)
        for r in records
        if r.ms
    ]
    caption = f"Parts of a layer, {records[0].dtype}"
    svg = bar_chart(bars, title=caption, x_label="milliseconds")
    return Chart(caption, "With the share of the ceiling that bounds each", svg)


def _beside_ceiling(record: Record) -> str:
    time = milliseconds(record.ms.reported) if record.ms else ""
    share = record.share_of_matmul or record.share_of_copy
    return f"{time} ms, {share:.0%}" if share else f"{time} ms"


def tolerance_section(results: Results) -> str:
    """How many random calls exceed the one tolerance rule, by backend and dtype."""
    rows = [
        [
            f"{values['arguments']['backend']}\n{name}.json",
            _dtype_of(values["arguments"]),
            *(str(values[key]) for key in ("calls", "out", "lse", "dqkv")),
            (values["environment"]["commit"] or "")[:10],
        ]
        for name, values in results.tolerance.items()
    ]
    headers = ["backend", "dtype", "calls", "outputs\nbeyond", "log-sum-exps\nbeyond"]
    headers += ["gradients\nbeyond", "commit"]
    said = (
        "Random calls of attention, and how many exceed |actual - exact| <= k |eager - exact| + "
        "2 eps max|exact|, with k = 2 in 16 bits and 4 in wider types. Exact is float64. The cases "
        "of the test suite keep the rule without exception."
    )
    command = "python -m benchmarks.tolerance BACKEND"
    body = f"<p>{escape(said)}</p>"
    if rows:
        body += table(headers, [rows], "Random calls beyond the tolerance rule")
    body += f'<p class="note">Repeat with <code>{command}</code>.</p>'
    return section("How exact it is", body, "tolerance")


def repeated_section(results: Results) -> str:
    """How far the ratios of a second run lie from those of the first."""
    rows = [
        _repeated_row(name, again, changes)
        for name, again in results.again.items()
        if (changes := ratios_apart(results, name))
    ]
    said = (
        "The same benchmark a second time: how far its ratios lie from "
        "those shown on this page. A run is sure of a ratio whose relative standard error between "
        f"passes is at most {SURE:.0%}."
    )
    near = f"within\n{NOISE:.0%}"
    headers = ["record", "ratios", near, "sure in\nboth", near, "apart, at most,\nwhere sure"]
    body = f"<p>{escape(said)}</p>"
    if rows:
        body += table(headers, [rows], "Two runs of the same benchmark")
    else:
        body += '<p class="note">There is no second run here.</p>'
    return section("How repeatable it is", body, "repeated")


def ratios_apart(results: Results, name: str) -> list[Change]:
    """Every ratio of an entry in the first run and in the second."""
    if name not in results.documents:
        return []
    changes = compare(results.again[name], results.documents[name])
    return [change for change in changes if change.what == "ratio"]


def _repeated_row(name: str, again: Document, ratios: Sequence[Change]) -> list[str]:
    sure = [change for change in ratios if change.sure]
    counts = [len(ratios), _near(ratios), len(sure), _near(sure)]
    farthest = f"{max(abs(change.share) for change in sure):.1%}" if sure else ""
    return [f"{AGAIN}/{name}.json\n{again.environment['date']}", *map(str, counts), farthest]


def _near(changes: Sequence[Change]) -> int:
    return sum(not change.beyond(NOISE) for change in changes)


def _dtype_of(arguments: Mapping[str, Any]) -> str:
    summed = "\nproducts summed as compiled" if arguments.get("chain") else ""
    return f"{arguments['dtype']}{summed}"


def ahead_section(results: Results) -> str:
    """Registers, spills and shared memory of the Triton kernels, by architecture."""
    kernels = results.ahead["kernels"]
    by_architecture: dict[str, list[list[str]]] = {}
    for name, values in sorted(kernels.items(), key=lambda item: _architecture(item[0])):
        cells = [f"{values[key]:,}" for key in ("registers", "spilled_bytes", "shared_bytes")]
        row = [name, *cells, str(values["wgmma"])]
        by_architecture.setdefault(f"sm_{_architecture(name)}", []).append(row)
    headers = ["kernel", "registers\na thread", "spilled\nbytes", "shared\nbytes", "wgmma"]
    said = (
        f"Triton {results.ahead['triton']} compiles the kernels without a GPU. No launch has been "
        "timed here: these are facts of the compiler, no speeds."
    )
    body = (
        f"<p>{escape(said)}</p>\n"
        f"{table(headers, by_architecture.values(), 'Triton kernels compiled ahead')}\n"
        f'<p class="note">Record: {AHEAD.relative_to(ROOT)}, written by '
        "<code>python -m benchmarks.compile_ahead --record</code>.</p>"
    )
    return section("Triton kernels, compiled ahead", body, "ahead")


def _architecture(name: str) -> int:
    found = re.search(r"sm_(\d+)", name)
    return int(found[1]) if found else 0


def _relative(results: Results) -> str:
    folder = results.folder.resolve()
    return str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else folder.name
