"""Ranges of the backward, which the profiler does not name, added to a Chrome trace.

Each node of the backward carries the number of the operator that made it. The innermost range
around that operator is the part whose gradient the node computes.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Event = dict[str, Any]

NODE = "autograd::engine::evaluate_function: "
RANGE, OPERATOR = "user_annotation", "cpu_op"


def name_the_backward(path: Path) -> None:
    """Add ``backward: layer 8 / rgb / mlp`` and the like to a trace, in place."""
    trace = json.loads(path.read_text())
    trace["traceEvents"] += backward_ranges(trace["traceEvents"])
    path.write_text(json.dumps(trace))


def backward_ranges(events: Iterable[Event]) -> list[Event]:
    """One range for each run of backward nodes of one part."""
    timed = sorted((e for e in events if e.get("ph") == "X"), key=lambda event: event["ts"])
    parts = _parts_of_operators(timed)
    found: list[Event] = []
    for event in timed:
        if not event["name"].startswith(NODE):
            continue
        number = _number(event)
        part = None if number is None else parts.get(number)
        name = found[-1]["name"] if part is None and found else f"backward: {part or 'loss'}"
        if found and found[-1]["name"] == name and found[-1]["tid"] == event["tid"]:
            found[-1]["dur"] = event["ts"] + event["dur"] - found[-1]["ts"]
        else:
            place = {key: event[key] for key in ("pid", "tid", "ts", "dur")}
            found.append({"ph": "X", "cat": RANGE, "name": name, **place, "args": {}})
    return found


def _parts_of_operators(timed: list[Event]) -> dict[int, str]:
    """The range around the operator of each number; of several operators the last made the node."""
    parts: dict[int, str] = {}
    open_ranges: list[Event] = []
    for event in timed:
        while open_ranges and open_ranges[-1]["ts"] + open_ranges[-1]["dur"] < event["ts"]:
            open_ranges.pop()
        if event.get("cat") == RANGE:
            open_ranges.append(event)
        number = _number(event)
        backward = event.get("args", {}).get("Fwd thread id", 0) > 0
        if event.get("cat") == OPERATOR and number is not None and open_ranges and not backward:
            parts[number] = open_ranges[-1]["name"]
    return parts


def _number(event: Event) -> int | None:
    return event.get("args", {}).get("Sequence number")
