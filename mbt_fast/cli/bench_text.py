"""What ``mbt-fast bench`` says: a table for each entry, verdicts, the suggestion, conditions."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import torch

import mbt_fast
from mbt_fast.bench.comparison import Bench
from mbt_fast.bench.models import GROWTH
from mbt_fast.bench.rows import MIB, Row
from mbt_fast.bench.suggest import Suggestion, verdict_of_auto
from mbt_fast.models import MBTConfig
from mbt_fast.profiling import machine
from mbt_fast.profiling.measure import Setting
from mbt_fast.report.table import amount, milliseconds

ABSENT = ""


def tables(bench: Bench) -> str:
    """Every entry: its title, its variants, and what to think of what ``auto`` takes."""
    said = verdicts(bench)
    parts = []
    for (part, entry), rows in _entries(bench).items():
        if not entry.startswith(GROWTH):
            lines = (f"{part}: {entry}", _table(rows), *_not_run(rows), said.get(entry, ""))
            parts.append("\n".join(filter(None, lines)))
    grown = [row for row in bench.rows if row.entry.startswith(GROWTH) and row.ran]
    if grown:
        parts.append(f"model: batch size, as suggested below\n{_growth_table(grown)}")
    return "\n\n".join(parts) or "nothing was measured"


def verdicts(bench: Bench) -> dict[str, str]:
    """By op: what ``auto`` takes, and whether that was the fastest."""
    return {
        entry: verdict_of_auto({row.variant: row for row in rows}, bench.taken[entry])
        for (part, entry), rows in _entries(bench).items()
        if part == "op"
    }


def records(bench: Bench) -> list[dict[str, Any]]:
    """Every row as plain data; ratios are to the first of its entry."""
    return [row.as_record(rows[0]) for rows in _entries(bench).values() for row in rows]


def suggestion(found: Sequence[Suggestion], code: str | None) -> str:
    """What to take, one line for each choice."""
    if not found:
        return "suggestion: none, the models were not compared"
    width = max(len(f"{one.choice}: {one.take}") for one in found)
    lines = [f"  {f'{one.choice}: {one.take}':<{width}}  {one.reason}" for one in found]
    return "\n".join(["suggestion:", *lines, f"  {code}"])


def conditions(
    config: MBTConfig, setting: Setting, why_dtype: str, interrupted: bool
) -> dict[str, str]:
    """Everything a reader needs to judge the numbers, and the command to repeat them."""
    sizes = ", ".join(f"{m} {'x'.join(map(str, config.input_size[m]))}" for m in config.modalities)
    tokens = ", ".join(f"{config.n_tokens(m)} {m}" for m in config.modalities)
    step = "forward and backward" if setting.mode == "train" else "forward, inference mode"
    slots = f", B = {config.n_slots}" if config.n_slots else ""
    return {
        "model": (
            f"{config.num_layers} layers of width {config.hidden_size}, {config.fusion} fusion at "
            f"layer {config.fusion_layer}{slots}"
        ),
        "input": f"{sizes}; own tokens: {tokens}",
        "call": f"{step}; ops, layer and ways at batch {setting.batch_size}",
        "device": f"{machine.device_name(setting.device)}, {torch.get_num_threads()} CPU threads",
        "dtype": f"{str(setting.dtype).removeprefix('torch.')} ({why_dtype})",
        "times": "medians of interleaved rounds after warm-up; ratios round by round, "
        "with the middle 60 %" + ("; interrupted" if interrupted else ""),
        "versions": f"mbt_fast {mbt_fast.__version__}, torch {torch.__version__}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["mbt-fast", *sys.argv[1:]]),
    }


def _entries(bench: Bench) -> dict[tuple[str, str], list[Row]]:
    entries: dict[tuple[str, str], list[Row]] = {}
    for row in bench.rows:
        entries.setdefault((row.part, row.entry), []).append(row)
    return entries


def _table(rows: Sequence[Row]) -> str:
    """The variants that ran, compared with the first."""
    return _tabulate(
        [row for row in rows if row.ran],
        {
            "": lambda row: row.variant,
            "ms [p20-p80]": _time,
            f"times as fast as {rows[0].variant}": lambda row: _times(row, rows[0]),
            "rounds": _rounds,
            "peak MB": lambda row: _size(row.peak_bytes),
            "kept MB": lambda row: _size(row.saved_bytes),
            "dispatch": lambda row: row.note,
        },
    )


def _not_run(rows: Sequence[Row]) -> list[str]:
    return [f"{row.variant}: {row.note}" for row in rows if not row.ran]


def _growth_table(grown: Sequence[Row]) -> str:
    """Pairs of a batch size and the one before, measured side by side."""
    before = {larger: smaller for smaller, larger in zip(grown[::2], grown[1::2], strict=True)}
    return _tabulate(
        [grown[0], *before],
        {
            "": lambda row: row.variant,
            "ms [p20-p80]": _time,
            "clips/s": lambda row: amount(row.clips_per_second),
            "times those of the size before": lambda row: (
                _times(row, before[row]) if row in before else ABSENT
            ),
            "rounds": _rounds,
            "peak MB": lambda row: _size(row.peak_bytes),
        },
    )


def _tabulate(rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> str:
    """Text, without columns that are empty."""
    from tabulate import tabulate

    cells = {header: [cell(row) for row in rows] for header, cell in columns.items()}
    kept = {header: column for header, column in cells.items() if any(column)}
    align = ["left" if header in ("", "dispatch") else "right" for header in kept]
    lines = list(zip(*kept.values(), strict=True))
    return tabulate(lines, headers=list(kept), colalign=align, disable_numparse=True)


def _rounds(row: Row) -> str:
    return str(len(row.seconds))


def _time(row: Row) -> str:
    if not row.ran:
        return ABSENT
    middle, low, high = (milliseconds(1e3 * value) for value in row.time)
    return f"{middle} [{low}-{high}]"


def _times(row: Row, baseline: Row) -> str:
    if not row.ran or not baseline.ran:
        return ABSENT
    middle, low, high = row.times_faster(baseline)
    return f"{middle:.2f} [{low:.2f}-{high:.2f}]"


def _size(count: int | None) -> str:
    return ABSENT if count is None else f"{count / MIB:.0f}"
