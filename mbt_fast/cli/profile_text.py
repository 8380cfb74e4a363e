"""What ``mbt-fast profile`` says in words: conditions, the choice within a budget, Figure 3."""

import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

import mbt_fast
from mbt_fast import dispatch
from mbt_fast.models import MBTConfig
from mbt_fast.profiling import budget, figure3, machine
from mbt_fast.profiling.measure import Setting
from mbt_fast.profiling.plan import Record


def conditions(
    base: MBTConfig,
    setting: Setting,
    why_dtype: str,
    records: Sequence[Record],
    interrupted: bool,
) -> dict[str, str]:
    """Everything a reader needs to judge the numbers, and the command to repeat them."""
    tokens = ", ".join(f"{base.n_tokens(m)} {m}" for m in base.modalities)
    sizes = ", ".join(f"{m} {'x'.join(map(str, base.input_size[m]))}" for m in base.modalities)
    step = "forward, loss and backward" if setting.mode == "train" else "forward, inference mode"
    said = {
        "model": f"{base.num_layers} layers of width {base.hidden_size}, every layer in full",
        "input": f"{sizes}; own tokens: {tokens}",
        "call": f"{step}, batch {setting.batch_size}",
        "device": f"{machine.device_name(setting.device)}, {torch.get_num_threads()} CPU threads",
        "dtype": f"{records[0]['dtype']} ({why_dtype})",
        "attention": _attention(base, setting),
        "rounds": _rounds(records, interrupted),
        "memory": "weights, inputs and the peak of tensors allocated in the call",
        "versions": f"mbt_fast {mbt_fast.__version__}, torch {torch.__version__}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["mbt-fast", *sys.argv[1:]]),
    }
    if records[0]["peak_memory_mb"] is None and not interrupted:
        for measured in ("call", "device", "dtype", "attention", "memory"):
            del said[measured]
    return said


def _attention(base: MBTConfig, setting: Setting) -> str:
    """Who runs it: pairwise attention may have no kernel where attention within a stream has."""
    rows = max(base.n_tokens(m) for m in base.modalities)
    runs = []
    for op, what in (
        ("bottleneck_attention", "within streams"),
        ("dense_attention", "pairwise (vanilla, own weights)"),
    ):
        if dispatch.implements(setting.backend, op):
            call = dispatch.Call(op, setting.device, setting.dtype, rows)
            runs.append(f"{what} by {dispatch.select(call, setting.backend)}")
    return ", ".join(runs)


def _rounds(records: Sequence[Record], interrupted: bool) -> str:
    counts = sorted({record["rounds"] for record in records})
    if counts == [0] and not interrupted:
        return "none: FLOPs only"
    span = " to ".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]]))
    said = (
        f"{span} rounds, interleaved, after one warm-up call; late fusion without shared weights "
        "measured once"
    )
    return f"{said}; interrupted" if interrupted else said


def choice(
    gflops: float | None, milliseconds: float | None, records: Sequence[Record], base: MBTConfig
) -> str:
    """The best model within a budget, in sentences."""
    limits = [
        f"{value:g} {unit}"
        for value, unit in ((gflops, "GFLOPs"), (milliseconds, "ms"))
        if value is not None
    ]
    within = f"Within {' and '.join(limits)}"
    if not any(budget.exchanges(record) for record in records):
        return f"{within}: nothing to choose from, this profile has no model with bottlenecks."
    found = budget.best_within(records, base, gflops=gflops, milliseconds=milliseconds)
    if found is None:
        return f"{within}: no bottleneck model of this profile fits."
    record = found.record
    return (
        f"{within}: fusion layer {record['fusion_layer']} with B = {record['n_bottlenecks']}, "
        f"{record['gflops']:.5g} GFLOPs; up to B = {found.largest_n_bottlenecks} fits.\n"
        f"The paper's mAP at that share of the depth is {found.paper_map:.2f} (Figure 3, "
        "AudioSet-mini); B from 4 to 1024 differ by under 0.5."
    )


def traced(path: Path, config: MBTConfig) -> str:
    """What a trace shows."""
    weights = ", shared weights" if config.share_encoder else ""
    slots = f", B = {config.n_slots}" if config.n_slots else ""
    return (
        f"trace: {path}, one call of {config.fusion} fusion{weights} at layer "
        f"{config.fusion_layer}{slots}; open it in ui.perfetto.dev"
    )


def figure3_table() -> str:
    """The paper's Figure 3 (right) beside ours."""
    from tabulate import tabulate

    rows = [
        (p.fusion, p.fusion_layer, p.ours, p.paper, 100 * p.element_wise_share, p.efficient)
        for p in figure3.points()
    ]
    headers = ["fusion", "L_f", "ours", "paper", "element-wise %", "efficient"]
    body = tabulate(rows, headers=headers, floatfmt=".2f")
    tokens = ", ".join(
        f"{figure3.CONDITIONS.n_tokens(m)} {m}" for m in figure3.CONDITIONS.modalities
    )
    return (
        "Figure 3 (right) of arXiv 2107.00135: GFLOPs, a multiply-add counted as one.\n"
        f"MBT-B, {tokens} tokens, B = {figure3.CONDITIONS.n_bottlenecks}; ours counts matrix\n"
        "products only, vanilla as the official code computes it; 'efficient' is what\n"
        f"Eq. 5-6 ask for.\n\n{body}"
    )
