"""How the cost of fusion grows: with fusion layer, span, bottlenecks, modalities and batch.

Every record has the FLOPs of all variants, counted in closed form, beside their times. Span and
modalities are swept with every layer fused.
"""

from typing import Any

import pytest
import torch

from benchmarks import baselines, models
from benchmarks.bench_model import run
from benchmarks.calls import DEVICE, ON_GPU, doubled
from mbt_fast import MBTConfig
from mbt_fast.flops import forward_flops
from mbt_fast.models.registry import config_for
from mbt_fast.profiling.runs import random_inputs

NAME = "mbt_base" if ON_GPU else "mbt_small"
EVERY_LAYER = {"fusion_layer": 0}
OFFICIAL = "vanilla, official"
VARIANTS: dict[str, dict[str, Any]] = {
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


def config_at(axis: str, value: int, variant: str = "ours", name: str = NAME) -> MBTConfig:
    """The model at a point of an axis."""
    return config_for(name, **AXES[axis][value], **VARIANTS[variant])


def flops_at(axis: str, value: int, name: str = NAME) -> dict[str, int]:
    """Of a batch, by variant of fusion."""
    batch, found = value if axis == "batch" else 1, {}
    for variant in VARIANTS:
        cost = "official" if variant == OFFICIAL else "efficient"
        found[variant] = batch * forward_flops(config_at(axis, value, variant, name), cost).total
    return found


@pytest.mark.parametrize(("axis", "value"), POINTS, ids=lambda part: str(part).replace(" ", "_"))
def test_sweep(race, axis, value):
    overrides = {} if race.tiny else AXES[axis][value]
    batch = value if axis == "batch" else 1
    dtype = torch.bfloat16
    name = "mbt_tiny" if race.tiny else NAME
    model = models.build(name, dtype, DEVICE, **overrides).eval()
    inputs = random_inputs(model, batch)
    unequal = {
        variant: run(models.with_weights_of(model, **changes).eval(), inputs)
        for variant, changes in VARIANTS.items()
        if variant not in ("ours", OFFICIAL)
    }
    official = models.with_weights_of(model, **models.VANILLA).eval()
    unequal[OFFICIAL] = torch.no_grad()(
        lambda: baselines.forward(official, inputs, baselines.vanilla_official)
    )
    flops = flops_at(axis, value)
    race(
        run(model, inputs),
        {"eager": torch.no_grad()(lambda: baselines.forward(model, inputs))},
        exact=run(models.double(model).set_backend("reference"), doubled(inputs)),
        unequal=unequal,
        flops=flops["ours"],
        scale=3,
        memory=True,
        case=axis,
        value=value,
        flops_by_variant=flops,
        mode="forward",
        **models.facts_of(model, batch),
    )
