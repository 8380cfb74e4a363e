"""Write the README's tables from the records: ``python -m benchmarks.readme``.

Speed-ups come from documents whose correctness tests were green at the same commit, or not at all.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.gate import load_green
from benchmarks.record import Document

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RECORDS = ROOT / "benchmarks" / "results" / "cpu-epyc-zen5-2cores-torch213"

CPU_DOCUMENTS = ("attention.json", "layer.json", "model.json", "savings.json")

Record = dict[str, Any]  # of a profile


def main() -> None:
    """Replace what stands between the markers of each table."""
    text = README.read_text()
    for name in TABLES:
        begin, end = markers(name)
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = head + begin + table(name) + end + tail
    README.write_text(text)


def markers(name: str) -> tuple[str, str]:
    """What stands around a table."""
    return f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"


def table(name: str) -> str:
    """One table as text."""
    return TABLES[name]()


def profile_table() -> str:
    """GFLOPs and latency of each fusion by fusion layer, and the conditions."""
    records = _read("profile.json")
    columns: dict[str, dict[int, Record]] = {}
    for record in records:
        columns.setdefault(_fusion(record), {})[record["fusion_layer"]] = record
    lines = [
        f"| fusion layer | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for layer in sorted({record["fusion_layer"] for record in records}):
        cells = " | ".join(_cell(column[layer]) for column in columns.values())
        lines.append(f"| {layer} | {cells} |")
    conditions = records[0]["conditions"]
    said = "; ".join(
        conditions[key] for key in ("input", "call", "device", "dtype", "attention", "rounds")
    )
    lines += ["", f"GFLOPs (2 per multiply-add) and median latency per clip of MBT-B. {said};"]
    lines += [
        f"{conditions['versions']}; {conditions['date']}. Record: {_link('profile.json')}.",
        "",
    ]
    return "\n".join(lines)


def cpu_table() -> str:
    """How many times faster than stock PyTorch the parts, a layer and the model are."""
    attention, layer, model, savings = (load_green(RECORDS / name) for name in CPU_DOCUMENTS)
    mbt = {"case": "MBT-B, 8 s", "variant": "ours, cpu", "batch": 1, "threads": 2}
    whole = {"variant": "ours", "mode": "forward"}
    steps = {"case": "step", "variant": "ours, savings"}
    rows = {
        "attention, forward": _ratios(attention, 1, mode="forward", **mbt),
        "attention, backward": _ratios(attention, 1, mode="backward", **mbt),
        "a fusion layer, forward": _ratios(layer, 2, **whole),
        "the model, forward": _ratios(model, 2, **whole),
        "a training step of MBT-S, CLS rows only in the last layer": _ratios(savings, 2, **steps),
    }
    lines = ["| times faster than stock PyTorch | bfloat16 | float32 |", "|---|---|---|"]
    lines += [f"| {what} | {' | '.join(ratios)} |" for what, ratios in rows.items()]
    compiled = _ratios(layer, 2, variant="eager, compiled", mode="forward")
    environment, conditions = layer.environment, layer.conditions
    lines += [
        "",
        f"MBT-B, one clip; {environment['device']}, {conditions['threads']} threads, "
        f"{conditions['instruction_set']}; medians of interleaved rounds; torch "
        f"{environment['torch']}; {environment['date']}. Stock: torch's attention once per "
        f"modality, eager; the layer under `torch.compile`: {' and '.join(compiled)}. "
        f"Records: {', '.join(map(_link, CPU_DOCUMENTS))}.",
        "",
    ]
    return "\n".join(lines)


def _ratios(document: Document, digits: int, **values: Any) -> list[str]:
    """Of the record with these values, in both dtypes."""
    records = [document.find(dtype=dtype, **values) for dtype in ("bfloat16", "float32")]
    return [f"{record.ratio.median:.{digits}f}" for record in records if record.ratio]


def _fusion(record: Record) -> str:
    if record["fusion"] == "bottleneck":
        return f"bottleneck, B = {record['n_bottlenecks']}"
    return f"vanilla, {'shared' if record['share_encoder'] else 'own'} weights"


def _cell(record: Record) -> str:
    return f"{record['gflops']:.1f} G, {record['latency_ms_median']:.0f} ms"


def _read(name: str) -> Any:
    return json.loads((RECORDS / name).read_text())


def _link(name: str) -> str:
    return f"[{name}]({(RECORDS / name).relative_to(ROOT)})"


TABLES = {"profile": profile_table, "cpu": cpu_table}


if __name__ == "__main__":
    main()
