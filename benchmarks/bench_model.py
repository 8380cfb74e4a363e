"""The whole model: forward, and a training step with each option of execution on and off.

The forward is raced against other engines too, on a CPU (``peers``).
"""

from collections.abc import Mapping
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import baselines, models
from benchmarks.calls import BATCHES, DEVICE, ON_GPU, Call, doubled, parametrized_by_dtype
from benchmarks.peers import ENGINES, peers
from mbt_fast import MBT
from mbt_fast.flops import forward_flops, training_flops
from mbt_fast.profiling.runs import random_inputs

OPTIONS: dict[str, dict[str, Any]] = {
    "ours, no options": {},
    "ours, cls_only": {"cls_only": True},
    "ours, recompute norms": {"recompute": "norms"},
    "ours, recompute mlp": {"recompute": "mlp"},
}
ALL = {"cls_only": True, "skip_dropped": True, "recompute": "norms"}
SHORT = {"rgb": (1, 224, 224), "spectrogram": (192, 128)}  # so that a batch of 8 does not take long
TRAINED = "mbt_base" if ON_GPU else "mbt_small"


def run(model: MBT, inputs: Mapping[str, Tensor]) -> Call:
    """Inference."""
    return torch.no_grad()(lambda: model(inputs))


def step(model: MBT, logits: Call) -> Call:
    """Forward and backward: logits, and the gradients of all weights."""
    parameters = list(model.parameters())

    def call() -> list[Tensor]:
        out = logits()
        return [out, *torch.autograd.grad(out.square().sum(), parameters)]

    return call


@parametrized_by_dtype()
@pytest.mark.parametrize("batch", BATCHES)
def test_forward(race, dtype, batch):
    model = models.build("mbt_tiny" if race.tiny else "mbt_base", dtype, DEVICE).eval()
    inputs = random_inputs(model, batch)
    cls_only = models.with_weights_of(model).eval().set_execution(cls_only=True)
    equal: dict[str, Call] = {
        "eager": torch.no_grad()(lambda: baselines.forward(model, inputs)),
        "ours, cls_only": run(cls_only, inputs),
    }
    if not race.tiny:
        equal["eager, compiled"] = torch.no_grad()(
            lambda: baselines.forward(
                model,
                inputs,
                baselines.compiled(baselines.bottleneck),
                baselines.compiled(baselines.unimodal),
            )
        )
    if ON_GPU:
        captured = model.capture(inputs)
        equal["ours, captured"] = lambda: captured(inputs)
    with peers(model, inputs, {} if ON_GPU or race.tiny else ENGINES) as others:
        race(
            run(model, inputs),
            equal | others,
            exact=run(models.double(model).set_backend("reference"), doubled(inputs)),
            flops=batch * forward_flops(model.config).total,
            scale=12,
            memory=True,
            case="model",
            mode="forward",
            **models.facts_of(model, batch),
        )


@parametrized_by_dtype()
@pytest.mark.parametrize("batch", BATCHES)
def test_training_step(race, dtype, batch):
    model = models.build("mbt_tiny" if race.tiny else TRAINED, dtype, DEVICE).train()
    inputs = random_inputs(model, batch)

    def with_options(**options: Any) -> Call:
        other = models.with_weights_of(model).train().set_execution(**options)
        return step(other, lambda: other(inputs))

    wide = models.double(model).set_backend("reference")
    wide_inputs = doubled(inputs)
    equal = {"eager": step(model, lambda: baselines.forward(model, inputs))}
    race(
        with_options(**ALL),
        equal | {name: with_options(**options) for name, options in OPTIONS.items()},
        exact=step(wide, lambda: wide(wide_inputs)),
        flops=batch * training_flops(model.config, cls_only=True).total,
        scale=16,
        memory=True,
        case="model",
        mode="training step",
        **models.facts_of(model, batch),
    )


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.6])
def test_drop_path(race, rate):
    """A step under stochastic depth, dropped branches skipped or masked; others in every call."""
    dtype, batch = torch.bfloat16, 2 if race.tiny else 8
    overrides = {} if race.tiny else {"input_size": SHORT}
    name = "mbt_tiny" if race.tiny else TRAINED
    model = models.build(name, dtype, DEVICE, stochastic_depth=rate, **overrides).train()
    inputs = random_inputs(model, batch)

    def seeded(other: MBT, given: Mapping[str, Tensor]) -> Call:
        seeds = count()

        def logits() -> Tensor:
            torch.manual_seed(next(seeds))
            return other.train()(given)

        return step(other, logits)

    skips = models.with_weights_of(model).set_execution(**ALL)
    masks = models.with_weights_of(model).set_execution(**ALL | {"skip_dropped": False})
    race(
        seeded(skips, inputs),
        {"ours, masked": seeded(masks, inputs)},
        exact=seeded(models.double(masks), doubled(inputs)),
        scale=4,
        case=f"drop path {rate}",
        mode="training step",
        **models.facts_of(model, batch),
    )
