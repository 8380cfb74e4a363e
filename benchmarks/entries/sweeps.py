"""How the cost of fusion grows: with the fusion layer, the span, B, the modalities and the batch.

Cases named "..., counted" hold the FLOPs of MBT-B at every point of an axis; the others latency and
memory at the points that fit a time budget, the ends of an axis first, on a CPU of MBT-S. Exponents
are fitted through both. Span and modalities are swept with every layer fused.

Ours computes three ways to fuse. "vanilla official" is that of ``benchmarks.eager``, never a
baseline.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, zip_longest
from typing import Any

import torch

from benchmarks.case import Case, Scope, Variant
from benchmarks.entries import model
from benchmarks.fit import fit_power
from benchmarks.record import Fit, Record
from benchmarks.ways import NO_SAVINGS, OWN, SHARED, WAYS, Task
from mbt_fast import MBTConfig
from mbt_fast.models.registry import config_for

SPANS = ((2, 2), (4, 4), (6, 6), (8, 8), (32, 8))  # frames of video, seconds of sound
COLUMNS = 100  # of a spectrogram, per second
EQUAL = 4  # frames of each modality where all are equal
OFFICIAL = "vanilla official"
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, vanilla own": OWN,
    "ours, vanilla shared": SHARED,
}
WAYS_TO_FUSE = (*OURS, OFFICIAL)
ON_CPU = {  # points of an axis that a CPU measures
    "fusion_layer": (0, 4, 8, 12),
    "span": (0, 1, 3),
    "n_bottlenecks": (0, 4, 8),
    "modalities": (0, 1, 2),
    "batch": (0, 1, 2),
}
AGAINST = {"span": "tokens", "modalities": "modalities", "batch": "batch"}


def cases(scope: Scope) -> Iterator[Case]:
    """FLOPs of everything, then what is measured, of each axis in turn."""
    dtype = torch.bfloat16
    whole = "mbt_tiny" if scope.smoke else "mbt_base"
    for axis, points in axes(whole).items():
        for task in tasks(whole, points, dtype):
            counts = partial(counted, axis, task)
            yield replace(_case(f"{axis}, counted", task, counts), timed=False)
    name = "mbt_small" if whole == "mbt_base" and not scope.gpu else whole
    queues = []
    for axis, points in axes(name).items():
        chosen = points if scope.gpu else [points[i] for i in ON_CPU[axis] if i < len(points)]
        chosen = [chosen[0], chosen[-1]] if scope.smoke else ends_first(chosen)
        queues.append([(axis, task) for task in tasks(name, chosen, dtype)])
        if scope.gpu and axis == "batch":
            queues.append([(axis, task) for task in tasks(name, chosen, dtype, "step")])
    for found in chain.from_iterable(zip_longest(*queues)):
        if found is not None:
            axis, task = found
            case = _case(axis, task, partial(measured, axis, task, scope))
            yield replace(case, launches=not scope.gpu or axis == "fusion_layer")


def axes(name: str) -> dict[str, list[dict[str, Any]]]:
    """What differs from the named model at the points of every axis; ``batch`` is its own key."""
    base = config_for(name)
    everywhere = {"fusion_layer": 0}
    return {
        "fusion_layer": [{"fusion_layer": f} for f in range(base.num_layers + 1)],
        "span": [{**everywhere, "input_size": span(base, *point)} for point in SPANS],
        "n_bottlenecks": [{"n_bottlenecks": 2**i} for i in range(9)],
        "modalities": [{**everywhere, **equal(base, count)} for count in (2, 3, 4)],
        "batch": [{"batch": 2**i} for i in range(8)],
    }


def span(base: MBTConfig, frames: int, seconds: int) -> dict[str, tuple[int, ...]]:
    """Input sizes; the spectrogram is cut to whole patches."""
    patch, mel = base.patch_size["spectrogram"][0], base.input_size["spectrogram"][1]
    columns = COLUMNS * seconds // patch * patch
    return {"rgb": (frames, *base.input_size["rgb"][1:]), "spectrogram": (columns, mel)}


def equal(base: MBTConfig, count: int) -> dict[str, Any]:
    """Several videos of one length."""
    names = ("a", "b", "c", "d")[:count]
    size = (min(EQUAL, base.input_size["rgb"][0]), *base.input_size["rgb"][1:])
    return {
        "modalities": names,
        "input_size": dict.fromkeys(names, size),
        "patch_size": dict.fromkeys(names, base.patch_size["rgb"]),
    }


def tasks(
    name: str, points: Sequence[Mapping[str, Any]], dtype: torch.dtype, mode: str = "forward"
) -> list[Task]:
    """One per point."""
    found = []
    for point in points:
        changes = {key: value for key, value in point.items() if key != "batch"}
        found.append(Task(name, mode, point.get("batch", 1), dtype, changes))
    return found


def ends_first(points: Sequence[Any]) -> list[Any]:
    """First, last, then the middle of every gap, so that a cut sweep still spans its axis."""
    gaps, order = [(0, len(points) - 1)], [0, len(points) - 1]
    while gaps:
        low, high = gaps.pop(0)
        middle = (low + high) // 2
        if middle > low:
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [points[index] for index in order]


def _case(name: str, task: Task, variants: Any) -> Case:
    baseline = None if name.startswith("n_bottlenecks") else "ours, vanilla own"
    return task.case(name, variants, baseline=baseline)


def ways_of(axis: str) -> tuple[str, ...]:
    """Only bottleneck fusion depends on the number of its tokens."""
    return ("ours",) if axis == "n_bottlenecks" else WAYS_TO_FUSE


def config_of(task: Task, way: str) -> MBTConfig:
    """The task's model, fused in another way."""
    return replace(task.config, **(OWN if way == OFFICIAL else OURS[way]))


def counted(axis: str, task: Task) -> dict[str, Variant]:
    """FLOPs alone."""
    found = {}
    for way in ways_of(axis):
        cost = task.flops(config_of(task, way), "official" if way == OFFICIAL else "efficient")
        found[way] = Variant(
            run=None,
            flops=task.batch * cost.total,
            attention_flops=task.batch * cost.attention,
        )
    return found


def measured(axis: str, task: Task, scope: Scope) -> Mapping[str, Variant]:
    """Models that share their weights."""
    names = ways_of(axis)
    models, inputs = task.build([config_of(task, way) for way in names], scope.device)
    found = counted(axis, task)
    for name, built in zip(names, models, strict=True):
        built.set_savings(**NO_SAVINGS)
        logits = partial(built, inputs)
        if name == OFFICIAL:
            logits = partial(WAYS[name].forward, built, inputs)
        found[name] = replace(found[name], run=model.run(task, built, logits))
    return found


def fits(records: Sequence[Record]) -> list[Fit]:
    """FLOPs, attention's alone and milliseconds, against what is swept."""
    found = []
    for axis, against in AGAINST.items():
        for way in WAYS_TO_FUSE:
            for name, quantity in (
                (f"{axis}, counted", "attention_flops"),
                (f"{axis}, counted", "flops"),
                (axis, "ms"),
            ):
                points = {
                    _size(record, against): _quantity(record, quantity)
                    for record in records
                    if (record.case, record.variant, record.mode) == (name, way, "forward")
                    and getattr(record, quantity)
                }
                if len(points) > 1:
                    names = {"case": name, "variant": way, "quantity": quantity}
                    fit = fit_power(list(points), list(points.values()), **names, against=against)
                    found.append(fit)
    return found


def _size(record: Record, against: str) -> int:
    tokens = record.shape["tokens"]
    return {"tokens": sum(tokens), "modalities": len(tokens), "batch": record.shape["batch"]}[
        against
    ]


def _quantity(record: Record, name: str) -> float:
    value = getattr(record, name)
    return value.reported if name == "ms" else value
