"""How the cost of fusion grows: with fusion layer, span, bottlenecks, modalities and batch.

Every record has the FLOPs of all ways to fuse, counted in closed form, beside their times. Span and
modalities are swept with every layer fused.
"""

from typing import Any

import pytest
import torch

import mbt_fast
from benchmarks import baselines, models
from benchmarks.bench_model import run
from benchmarks.calls import DEVICE, ON_GPU
from mbt_fast import MBTConfig
from mbt_fast.flops import forward_flops
from mbt_fast.profiling.runs import random_inputs

NAME = "mbt_base" if ON_GPU else "mbt_small"
EVERY_LAYER = {"fusion_layer": 0}
OFFICIAL = "vanilla, official"
WAYS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, vanilla, own weights": models.VANILLA,
    "ours, vanilla, shared weights": models.VANILLA_SHARED,
    OFFICIAL: models.VANILLA,
}


def span(frames: int, columns: int) -> dict[str, Any]:
    """Frames of video, columns of the spectrogram."""
    return {"input_size": {"rgb": (frames, 224, 224), "spectrogram": (columns, 128)}}


def videos(number: int) -> dict[str, Any]:
    """Several modalities of one length."""
    names = ("a", "b", "c", "d")[:number]
    return {
        "modalities": names,
        "input_size": dict.fromkeys(names, (4, 224, 224)),
        "patch_size": dict.fromkeys(names, (1, 16, 16)),
    }


AXES: dict[str, dict[int, dict[str, Any]]] = {
    "fusion layer": {layer: {"fusion_layer": layer} for layer in (0, 4, 8, 12)},
    "frames": {n: EVERY_LAYER | span(n, 96 * n) for n in (2, 4, 8)},
    "bottlenecks": {n: {"n_bottlenecks": n} for n in (1, 4, 16, 64)},
    "modalities": {n: EVERY_LAYER | videos(n) for n in (2, 3, 4)},
    "batch": {n: {} for n in ((1, 8, 64) if ON_GPU else (1, 2, 4))},
}
POINTS = [(axis, value) for axis, points in AXES.items() for value in points]


def config_at(axis: str, value: int, way: str = "ours", name: str = NAME) -> MBTConfig:
    """The model at a point of an axis."""
    with torch.device("meta"):
        return mbt_fast.create_model(name, **AXES[axis][value], **WAYS[way]).config


def flops_at(axis: str, value: int, name: str = NAME) -> dict[str, int]:
    """Of a batch, by way to fuse."""
    return {
        way: (value if axis == "batch" else 1)
        * forward_flops(
            config_at(axis, value, way, name), "official" if way == OFFICIAL else "efficient"
        ).total
        for way in WAYS
    }


@pytest.mark.parametrize(("axis", "value"), POINTS, ids=lambda part: str(part).replace(" ", "_"))
def test_sweep(race, axis, value):
    overrides = {} if race.tiny else AXES[axis][value]
    batch = value if axis == "batch" else 1
    dtype = torch.bfloat16
    name = "mbt_tiny" if race.tiny else NAME
    model = models.build(name, dtype, DEVICE, **overrides).eval()
    inputs = random_inputs(model, batch)
    others = {
        way: models.with_weights_of(model, **overrides).eval()
        for way, overrides in WAYS.items()
        if way != "ours"
    }
    unequal = {way: run(other, inputs) for way, other in others.items() if way != OFFICIAL}
    official = others[OFFICIAL]
    unequal[OFFICIAL] = torch.no_grad()(
        lambda: baselines.forward(official, inputs, baselines.vanilla_official)
    )
    flops = flops_at(axis, value)
    race(
        run(model, inputs),
        {"eager": torch.no_grad()(lambda: baselines.forward(model, inputs))},
        exact=run(models.double(model).set_backend("reference"), models.to_double(inputs)),
        unequal=unequal,
        flops=flops["ours"],
        scale=3,
        memory=True,
        case=axis,
        value=value,
        flops_by_way=flops,
        mode="forward",
        **models.facts_of(model, batch),
    )
