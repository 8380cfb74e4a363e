"""A Chrome trace of one call, with the ranges that the model records.

The ranges are ``embed / modality``; ``layer i``; within it ``layer i / part``, or
``layer i / modality / part`` where a part belongs to one stream; then ``norm`` and ``head``. The
profiler does not name the backward: each of its nodes carries the sequence number of the operator
that made it, and is named after the innermost range around that operator.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mbt_fast.models import MBTConfig
from mbt_fast.profiling.runs import Setting, build_models, random_inputs, step_of

NODE = "autograd::engine::evaluate_function: "
RANGE, OPERATOR = "user_annotation", "cpu_op"

Event = dict[str, Any]


def write_trace(path: Path, config: MBTConfig, setting: Setting) -> str:
    """Write a trace of one call, after one that warms up.

    Args:
        path: The file; ``chrome://tracing`` and ``ui.perfetto.dev`` open it.
        config: The model.
        setting: How it is run.

    Returns:
        What the trace shows, in a sentence.
    """
    (model,) = build_models([config], setting)
    step = step_of(model, random_inputs(model, setting.batch_size), setting)
    step()
    activities = [ProfilerActivity.CPU]
    if setting.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True) as record:
        step()
        if setting.device.type == "cuda":
            torch.cuda.synchronize(setting.device)
    record.export_chrome_trace(str(path))
    trace = json.loads(path.read_text())
    trace["traceEvents"] += backward_ranges(trace["traceEvents"])
    path.write_text(json.dumps(trace))
    weights = ", shared weights" if config.share_encoder else ""
    slots = f", B = {config.n_slots}" if config.n_slots else ""
    return (
        f"trace: {path}, one call of {config.fusion} fusion{weights} at layer "
        f"{config.fusion_layer}{slots}; open it in ui.perfetto.dev"
    )


def backward_ranges(events: Iterable[Event]) -> list[Event]:
    """``backward: layer 8 / mlp`` and the like: one range for each run of nodes of one part."""
    timed = sorted((e for e in events if e.get("ph") == "X"), key=lambda event: event["ts"])
    parts = _parts_of_operators(timed)
    found: list[Event] = []
    for event in timed:
        if not event["name"].startswith(NODE):
            continue
        part = parts.get(_number(event))
        name = f"backward: {part or 'loss'}"
        if found and (part is None and _number(event) is None):
            name = found[-1]["name"]
        if found and found[-1]["name"] == name and found[-1]["tid"] == event["tid"]:
            found[-1]["dur"] = event["ts"] + event["dur"] - found[-1]["ts"]
        else:
            place = {key: event[key] for key in ("pid", "tid", "ts", "dur")}
            found.append({"ph": "X", "cat": RANGE, "name": name, **place, "args": {}})
    return found


def _parts_of_operators(timed: Iterable[Event]) -> dict[int | None, str]:
    """The range around the operator of each number; of several operators the last made the node."""
    parts: dict[int | None, str] = {}
    open_ranges: list[Event] = []
    for event in timed:
        while open_ranges and open_ranges[-1]["ts"] + open_ranges[-1]["dur"] < event["ts"]:
            open_ranges.pop()
        if event.get("cat") == RANGE:
            open_ranges.append(event)
        forward = event.get("args", {}).get("Fwd thread id", 0) == 0
        number = _number(event)
        if event.get("cat") == OPERATOR and forward and open_ranges and number is not None:
            parts[number] = open_ranges[-1]["name"]
    return parts


def _number(event: Event) -> int | None:
    return event.get("args", {}).get("Sequence number")
