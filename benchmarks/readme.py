"""Write the README's table from the recorded profile: ``python -m benchmarks.readme``."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RECORD = ROOT / "benchmarks" / "results" / "cpu-epyc-zen5-2cores-torch213" / "profile.json"
BEGIN, END = "<!-- profile: begin -->\n", "<!-- profile: end -->\n"

Record = dict[str, Any]


def main() -> None:
    """Replace what stands between the markers."""
    text = README.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    README.write_text(head + BEGIN + profile_table(json.loads(RECORD.read_text())) + END + tail)


def profile_table(records: list[Record]) -> str:
    """GFLOPs and latency of each fusion by fusion layer, and the conditions."""
    columns: dict[str, dict[int, Record]] = {}
    for record in records:
        columns.setdefault(_name(record), {})[record["fusion_layer"]] = record
    lines = [
        f"| fusion layer | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for layer in sorted({record["fusion_layer"] for record in records}):
        cells = " | ".join(_cell(column[layer]) for column in columns.values())
        lines.append(f"| {layer} | {cells} |")
    conditions = records[0]["conditions"]
    said = "; ".join(conditions[key] for key in ("input", "call", "device", "dtype", "rounds"))
    where = RECORD.relative_to(ROOT)
    lines += ["", f"GFLOPs (2 per multiply-add) and median latency per clip of MBT-B. {said};"]
    lines += [
        f"{conditions['versions']}; {conditions['date']}. Record: [profile.json]({where}).",
        "",
    ]
    return "\n".join(lines)


def _name(record: Record) -> str:
    if record["fusion"] == "bottleneck":
        return f"bottleneck, B = {record['n_bottlenecks']}"
    return f"vanilla, {'shared' if record['share_encoder'] else 'own'} weights"


def _cell(record: Record) -> str:
    return f"{record['gflops']:.1f} G, {record['latency_ms_median']:.0f} ms"


if __name__ == "__main__":
    main()
