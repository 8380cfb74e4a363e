"""Models and inputs for the benchmarks of layers, models and sweeps."""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

import mbt_fast
from mbt_fast import MBT, MBTConfig

VANILLA = {"fusion": "vanilla"}
VANILLA_SHARED = {"fusion": "vanilla", "share_encoder": True}
DEFAULT: dict[str, Any] = {"recompute": "none", "cls_only": False, "skip_dropped": False}
MEMORY = {"none": "full", "norms": "reduced", "mlp": "minimal"}  # before set_execution


def build(name: str, dtype: torch.dtype, device: torch.device, **overrides: Any) -> MBT:
    """A named model whose weights have the scale of trained ones, with no option of execution."""
    model = mbt_fast.create_model(name, **overrides).to(device, dtype)
    for path, parameter in model.named_parameters():
        if ".norm" not in path and not path.startswith("norm"):
            fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
            nn.init.normal_(parameter, std=fan_in**-0.5)
    return set_execution(model)


def with_weights_of(model: MBT, **overrides: Any) -> MBT:
    """Another kind of fusion that shares parameters of the same name and shape."""
    config = MBTConfig.from_dict(model.config.to_dict() | overrides)
    other = MBT(config).to(model.norm.weight)
    own, given = dict(other.named_parameters()), dict(model.named_parameters())
    shared = {k: given[k] for k in own.keys() & given.keys() if own[k].shape == given[k].shape}
    other.load_state_dict(shared, strict=False, assign=True)
    return set_execution(other)


def set_execution(model: MBT, **options: Any) -> MBT:
    """``MBT.set_execution`` with what is not named turned off, of versions without it likewise."""
    options = DEFAULT | options
    if hasattr(model, "set_execution"):
        return cast(Any, model).set_execution(**options)
    return model.set_savings(memory=MEMORY[options.pop("recompute")], **options)


def random_inputs(model: MBT, batch: int) -> dict[str, Tensor]:
    """One batch of normally distributed clips; speed may depend on data, never on zeros."""
    weight = model.norm.weight
    return {
        m: torch.randn(batch, *model.embedding(m).input_shape, device=weight.device).to(weight)
        for m in model.config.modalities
    }


def to_double(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In float64."""
    return {name: tensor.double() for name, tensor in tensors.items()}


def shape_of(config: MBTConfig, batch: int) -> dict[str, Any]:
    """What a record says of a model and its batch."""
    return {
        "batch": batch,
        "tokens": [config.n_tokens(m) for m in config.modalities],
        "channels": config.hidden_size,
        "layers": config.num_layers,
        "fusion_layer": config.fusion_layer,
        "n_bottlenecks": config.n_bottlenecks,
    }


def double(model: MBT) -> MBT:
    """A copy in float64."""
    return copy.deepcopy(model).double()
