"""What only resuming needs, as named tensors: momentum and the like, and weights not evaluated."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mbt_fast.errors import CheckpointError


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as ``{"momentum_buffer/blocks.0...": tensor}``, on the CPU.

    Raises:
        TypeError: The optimizer keeps something that is no tensor.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value is None:
                continue
            if not isinstance(value, Tensor):
                raise TypeError(f"{key} of the optimizer must be a tensor, got {value!r}")
            tensors[f"{key}/{names[parameter]}"] = value
    return tensors


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Inverse of ``optimizer_tensors``.

    Raises:
        CheckpointError: A tensor belongs to no parameter that the optimizer has.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    order = [names[parameter] for group in groups for parameter in group["params"]]
    index = {name: place for place, name in enumerate(order)}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, parameter = name.partition("/")
        if parameter not in index:
            raise CheckpointError(f"state of the optimizer must be of its parameters, got {name!r}")
        state.setdefault(index[parameter], {})[key] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, under names that begin with ``prefix`` and a slash, as safetensors takes them.

    Each gets memory of its own, on the CPU.
    """
    dense = torch.contiguous_format
    return {
        f"{prefix}/{name}": tensor.detach().cpu().clone(memory_format=dense)
        for name, tensor in tensors.items()
    }


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with ``prefix`` and a slash, by the rest of their names."""
    start = f"{prefix}/"
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }
