"""What a run will be, before it is: ``mbt-fast train --dry-run``."""

import json
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mbt_fast import flops
from mbt_fast.config import MBTConfig
from mbt_fast.data.manifest import Manifest
from mbt_fast.models.saved import Model
from mbt_fast.profiling import tables
from mbt_fast.profiling.machine import dtype_name, free_bytes
from mbt_fast.train.config import TrainConfig
from mbt_fast.train.parts import Data, Parts, build_parts, read_data
from mbt_fast.train.rates import (
    Learning,
    Reading,
    measure_learning,
    measure_reading,
    waiting_share,
)

SECONDS = 10.0  # for each of the two measurements, about
SHOWN = 5
PREFIXES = ("", "K", "M", "G", "T", "P")


def parts_of(config: TrainConfig, seconds: float = SECONDS) -> Iterator[str]:
    """The parts of the plan as text, each as soon as it is known.

    Args:
        config: Of the run.
        seconds: For each measurement, about.

    Raises:
        InputError: What the run would refuse.
    """
    if not config.data.train:
        yield resolved(config)
    data = read_data(config)
    config = config.with_num_classes(len(data.names))
    yield resolved(config)
    yield census(data)
    parts = build_parts(config, data)
    yield length(parts)
    yield cost(parts)
    yield speed(parts, measure_reading(parts, seconds), measure_learning(parts, seconds))


def resolved(config: TrainConfig) -> str:
    """The configuration as TOML, with the origin of each value behind it."""
    lines: list[str] = []
    section = ""
    for key, value in config.to_flat().items():
        table, _, name = key.partition(".")
        if table != section:
            lines += [*[""] * bool(lines), f"[{table}]"]
            section = table
        given = json.dumps(value, ensure_ascii=False)  # is TOML too, for the values that there are
        lines.append(f"{f'{name} = {given}':<48} # {config.origins[key]}")
    return "\n".join(lines)


def census(data: Data) -> str:
    """The manifests: clips, classes, classes without a clip, files that are not there."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    found = [
        (name, manifest, manifest.class_counts(data.names, data.task), _missing(manifest))
        for name, manifest in splits.items()
        if manifest is not None
    ]
    table = tables.text(
        ("manifest", "clips", "classes", "without a clip", "missing files"),
        [
            (name, f"{len(manifest):,}", str(len(counts)), str(len(empty(counts))), str(n_missing))
            for name, manifest, counts, (n_missing, _) in found
        ],
        left=("manifest",),
    )
    notes = []
    for name, _, counts, (n_missing, first) in found:
        if empty(counts):
            shown = _shortened([data.names[index] for index in empty(counts)])
            notes.append(f"{name}: no clip of {shown}")
        if n_missing:
            notes.append(f"{name}: missing {_shortened(first, n_missing)}")
    return "\n".join([table, *notes])


def empty(counts: torch.Tensor) -> list[int]:
    """Classes without a clip."""
    return (counts == 0).nonzero().flatten().tolist()


def length(parts: Parts) -> str:
    """Steps of the run."""
    n_clips, train = len(parts.data.train), parts.config.train
    warmup = train.total_warmup_steps(n_clips)
    dropped = n_clips % train.batch_size
    left_out = f", {dropped} clips of each are left out" if dropped else ""
    return "\n".join(
        (
            f"steps:    {parts.total_steps:,}, of which {warmup:,g} warm up",
            f"epochs:   {parts.total_steps / parts.steps_per_epoch:g} of "
            f"{parts.steps_per_epoch:,} steps of {train.batch_size} clips{left_out}",
        )
    )


def cost(parts: Parts) -> str:
    """FLOPs and the memory of what does not depend on the batch."""
    per_clip, held = training_flops(parts), memory(parts)
    per_step = per_clip * parts.config.train.batch_size
    count = sum(parameter.numel() for parameter in parts.model.parameters())
    names = ", ".join(f"{name} {scaled(size, 'B', 1024)}" for name, size in held.items())
    flop = [scaled(n, "FLOP") for n in (per_clip, per_step, per_step * parts.total_steps)]
    return "\n".join(
        (
            f"model:    {count:,} parameters, {dtype_name(parts.dtype)} on {parts.device}",
            f"compute:  {flop[0]} a clip, {flop[1]} a step, {flop[2]} in all, both passes",
            f"memory:   {scaled(sum(held.values()), 'B', 1024)} before activations ({names}); "
            f"free are {scaled(free_bytes(parts.device), 'B', 1024)}",
        )
    )


def training_flops(parts: Parts) -> int:
    """Forward and backward of one clip, 2 per multiply-add; with branches that drop path skips."""
    if isinstance(parts.model.config, MBTConfig):
        return flops.training_flops(parts.model.config).total
    forward = forward_flops(parts.model, parts.transform.shapes)
    return 3 * forward  # a backward takes two products for each of the forward


def forward_flops(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Forward of one clip, of these shapes by modality, as torch counts it.

    For models without a closed form.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    inputs: Any = {m: torch.zeros(1, *shape, device=device) for m, shape in shapes.items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(inputs)
    return counter.get_total_flops()


def memory(parts: Parts) -> dict[str, int]:
    """Bytes by what they hold."""
    train = parts.config.train
    weights = _bytes(parts.model)
    states = 2 if train.optimizer == "adamw" else int(train.momentum > 0)
    gradients = 2 if train.virtual_devices > 1 else 1  # of a group, and their sum
    held = {"weights": weights, "gradients": gradients * weights, "optimizer": states * weights}
    return held | ({"average": weights} if train.ema else {})


def speed(parts: Parts, reading: Reading, learning: Learning) -> str:
    """Clips per second of reading and of learning, and which of the two will wait.

    What ``data.cache`` may hold already is not looked up: all clips count as decoded once.
    """
    workers = f"{reading.workers} workers" if reading.workers else "the process of the model"
    clips = parts.total_steps * learning.batch_size
    if parts.config.data.cache:
        filling = len(parts.data.train) / reading.rate
        seconds = filling + clips / learning.rate
        verdict = f"waits:    the model, for {duration(filling)} until data.cache has all clips"
    else:
        rate = 1 / (reading.seconds + 1 / learning.rate) if not reading.workers else None
        seconds = clips / (rate or min(reading.rate, learning.rate))
        verdict = _verdict(reading, learning)
    broken = f", {reading.broken} more could not be read" if reading.broken else ""
    shared = parts.device.type == "cpu" and reading.workers > 0
    lines = [
        f"reading:  {tables.significant(reading.rate)} clips/s by {workers} "
        f"({1e3 * reading.seconds:.0f} ms a clip, {reading.clips} measured{broken})",
        f"learning: {tables.significant(learning.rate)} clips/s, {learning.at_a_time} at a time",
        verdict,
        f"the run:  about {duration(seconds)}, without scores and checkpoints",
    ]
    if shared:
        lines.append("note:     workers and model share the CPU, so each will be slower than this")
    return "\n".join(lines)


def _verdict(reading: Reading, learning: Learning) -> str:
    waits = waiting_share(reading, learning)
    if waits == 0:
        idle = 1 - learning.rate / reading.rate
        return f"waits:    the workers, {idle:.0%} of the time; the model never waits for clips"
    enough = max(reading.workers + 1, ceil(learning.rate * reading.seconds))
    return f"waits:    the model, {waits:.0%} of the time; data.workers={enough} would keep up"


def _missing(manifest: Manifest) -> tuple[int, list[str]]:
    """How many files are not there, and the first of them."""
    last, gone = "", dict[str, None]()
    for entry in manifest:
        if entry.path != last and not Path(entry.path).is_file():
            gone[entry.path] = None
        last = entry.path
    return len(gone), list(gone)[:SHOWN]


def _shortened(names: list[str], count: int | None = None) -> str:
    count = len(names) if count is None else count
    shown = ", ".join(names[:SHOWN])
    return shown if count <= SHOWN else f"{shown} and {count - SHOWN} more"


def scaled(value: float, unit: str, step: int = 1000) -> str:
    """Three digits and a prefix: ``1.05 GFLOP``, ``668 MiB``."""
    power = 0
    while value >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / step, power + 1
    binary = "i" if step == 1024 and power else ""
    return f"{tables.significant(value)} {PREFIXES[power]}{binary}{unit}"


def duration(seconds: float) -> str:
    """Two digits and a unit: ``3.1 hours``."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{tables.significant(seconds / size, 2)} {unit}"
    return f"{tables.significant(seconds, 2)} seconds"


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
