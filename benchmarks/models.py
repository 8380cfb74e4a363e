"""Models and inputs for the benchmarks of layers, models and sweeps."""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

import mbt_fast
from mbt_fast import MBT, MBTConfig

VANILLA = {"fusion": "vanilla"}
VANILLA_SHARED = {"fusion": "vanilla", "share_encoder": True}
DEFAULT: dict[str, Any] = {"recompute": "none", "cls_only": False, "skip_dropped": False}
MEMORY = {"none": "full", "norms": "reduced", "mlp": "minimal"}  # before set_execution


def build(name: str, dtype: torch.dtype, device: torch.device, **overrides: Any) -> MBT:
    """A named model whose weights have the scale of trained ones, with no option of execution."""
    with torch.device("meta"):
        model = mbt_fast.create_model(name, **overrides)
    return _fill(model, {}, torch.empty(0, device=device, dtype=dtype))


def with_weights_of(model: MBT, **overrides: Any) -> MBT:
    """Another kind of fusion that shares parameters of the same name and shape."""
    with torch.device("meta"):
        other = MBT(MBTConfig.from_dict(model.config.to_dict() | overrides))
    return _fill(other, dict(model.named_parameters()), model.norm.weight)


def _fill(model: MBT, known: Mapping[str, Tensor], like: Tensor) -> MBT:
    """Give a model on the meta device the known parameters, and random ones else."""
    state = {}
    for path, parameter in model.named_parameters():
        given = known.get(path)
        same = given is not None and given.shape == parameter.shape
        state[path] = given if same else _draw(path, parameter.shape, like)
    model.load_state_dict(state, assign=True)
    return set_execution(model)


def _draw(path: str, shape: torch.Size, like: Tensor) -> Tensor:
    """Ones and zeros for norms, else normal with variance 1 / fan-in."""
    weights = torch.empty(shape, device=like.device, dtype=like.dtype)
    if ".norm" in path or path.startswith("norm"):
        return weights.fill_(float(path.endswith("weight")))
    return weights.normal_(std=(shape[1:].numel() if len(shape) > 1 else shape.numel()) ** -0.5)


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
