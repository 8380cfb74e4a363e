"""Models and inputs for the benchmarks of layers, models and sweeps."""

import copy
from typing import Any

import torch

from mbt_fast import MBT
from mbt_fast.models.registry import config_for
from mbt_fast.profiling.machine import dtype_name
from mbt_fast.profiling.runs import build_model

VANILLA = {"fusion": "vanilla"}
VANILLA_SHARED = {"fusion": "vanilla", "share_encoder": True}
NO_OPTIONS: dict[str, Any] = {"recompute": "none", "cls_only": False, "skip_dropped": False}


def build(name: str, dtype: torch.dtype, device: torch.device, **overrides: Any) -> MBT:
    """A named model whose weights have the scale of trained ones, with no option of execution."""
    model = build_model(config_for(name, **overrides), device, dtype, {})
    return model.set_execution(**NO_OPTIONS)


def with_weights_of(model: MBT, **overrides: Any) -> MBT:
    """Another kind of fusion that shares parameters of the same name and shape."""
    weight, weights = model.norm.weight, dict(model.named_parameters())
    other = build_model(model.config.replace(**overrides), weight.device, weight.dtype, weights)
    return other.set_execution(**NO_OPTIONS)


def double(model: MBT) -> MBT:
    """A copy in float64."""
    return copy.deepcopy(model).double()


def facts_of(model: MBT, batch: int) -> dict[str, Any]:
    """What a record says of a model and its batch."""
    config = model.config
    shape = {
        "batch": batch,
        "tokens": [config.n_tokens(m) for m in config.modalities],
        "channels": config.hidden_size,
        "layers": config.num_layers,
        "fusion_layer": config.fusion_layer,
        "n_bottlenecks": config.n_bottlenecks,
        "stochastic_depth": config.stochastic_depth,
    }
    return {"dtype": dtype_name(model.norm.weight.dtype), "shape": shape}
