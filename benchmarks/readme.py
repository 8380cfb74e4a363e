"""Write the README's tables from the records: ``python -m benchmarks.readme``."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RECORDS = ROOT / "benchmarks" / "results" / "cpu-epyc-zen5-2cores-torch213"

Record = dict[str, Any]


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
    attention, layer = _read("cpu_attention.json"), _read("cpu_layer.json")
    steps = [record for record in _read("savings.json")["records"] if record["entry"] == "step"]
    lines = ["| times faster than stock PyTorch | bfloat16 | float32 |", "|---|---|---|"]
    for direction in ("forward", "backward"):
        cells = [_attention(attention["records"], d, direction) for d in ("bfloat16", "float32")]
        lines.append(f"| attention, {direction} | {' | '.join(cells)} |")
    for entry, what in (("layer", "a fusion layer, forward"), ("model", "the model, forward")):
        cells = [_layer(layer["records"], d, entry) for d in ("bfloat16", "float32")]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    cells = [_layer(steps, d, "step", "together") for d in ("bfloat16", "float32")]
    lines.append(
        f"| a training step of MBT-S, CLS rows only in the last layer | {' | '.join(cells)} |"
    )
    environment = layer["environment"]
    names = ("cpu_attention.json", "cpu_layer.json", "savings.json")
    links = ", ".join(_link(name) for name in names)
    lines += [
        "",
        f"MBT-B, one clip; {environment['device']}, {layer['threads']} threads, "
        f"{layer['instruction_set']}; medians of interleaved rounds; torch {environment['torch']}; "
        f"{environment['date']}. Stock: torch's attention once per modality, eager; the layer "
        f"under `torch.compile`: {_layer(layer['records'], 'bfloat16', 'layer', 'compiled')} and "
        f"{_layer(layer['records'], 'float32', 'layer', 'compiled')}. Records: {links}.",
        "",
    ]
    return "\n".join(lines)


def _attention(records: list[Record], dtype: str, direction: str) -> str:
    (record,) = (
        r for r in records if (r["dtype"], r["batch"], r["threads"], r["std"]) == (dtype, 1, 2, 1.0)
    )
    return f"{record['speedup'][f'sdpa {direction}']:.1f}"


def _layer(records: list[Record], dtype: str, entry: str, variant: str = "ours") -> str:
    (record,) = (
        r for r in records if (r["entry"], r["dtype"], r["variant"]) == (entry, dtype, variant)
    )
    return f"{record['ratio']:.2f}"


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
