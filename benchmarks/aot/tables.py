"""The record as tables of the documentation."""

from typing import Any

from benchmarks.records import ROOT
from benchmarks.report import replace_block

Record = dict[str, Any]
FORWARD = "bottleneck_attention_fwd"
WALKS = {
    "keys": "bottleneck_attention_bwd_keys bfloat16 {} 1",
    "keys, without dQ": "bottleneck_attention_bwd_keys bfloat16 {} 0",
    "queries": "bottleneck_attention_bwd_queries bfloat16 {}",
}
HEAD = ("instructions", "issue", "tensor", "exponentials", "shared")
CYCLES = ("instructions of a warp", *(f"{name} cycles" for name in HEAD[1:]))


def write(cuda: Record, predicted: Record) -> None:
    """Put every table between its markers."""
    for file, name, table in (
        ("csrc/cuda/README.md", "turns", forward_turns(cuda)),
        ("csrc/cuda/BACKWARD.md", "turns", backward_turns(cuda)),
        ("benchmarks/README.md", "predictions", speeds(predicted)),
    ):
        path = ROOT / file
        path.write_text(replace_block(path.read_text(), name, table))


def forward_turns(cuda: Record) -> str:
    """A row for each tile of keys."""
    rows = []
    for head_dim in (64, 128):
        for turn in cuda["kernels"][f"{FORWARD} bfloat16 {head_dim}"]["turns"]:
            keys = turn["tensor"] // (head_dim // 8)  # 128 queries, two products
            rows.append([f"{head_dim} channels: {keys}", *(turn[name] for name in HEAD)])
    return _markdown(("keys of a tile", *CYCLES), rows)


def backward_turns(cuda: Record) -> str:
    """A row for each walk."""
    rows = []
    for walk, name in WALKS.items():
        for head_dim in (64, 128):
            found = cuda["kernels"][name.format(head_dim)]["turns"]
            turn = max(found, key=lambda turn: turn["tensor"])  # not that of an idle group
            hidden = f"{turn['hidden']:.0%}"
            row = [f"{walk}, {head_dim} channels", *(turn[name] for name in HEAD), hidden]
            rows.append(row)
    return _markdown(("walk", *CYCLES, "exponentials beside a product"), rows)


def speeds(predicted: Record) -> str:
    """A row for each backend and pass."""
    found = predicted["predicted"]
    lengths = list(next(iter(found.values())))
    head = ("TFLOP/s, predicted", *(f"{length} rows" for length in lengths), "asks most of")
    rows = []
    for name, by_length in found.items():
        limits = ", ".join(dict.fromkeys(entry["limit"] for entry in by_length.values()))
        rows.append([name, *(by_length[length]["tflops"] for length in lengths), limits])
    return _markdown(head, rows)


def _markdown(head: tuple[str, ...], rows: list[list[Any]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
