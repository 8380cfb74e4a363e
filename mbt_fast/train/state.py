"""What a step changes, and how a checkpoint holds it.

``model.safetensors`` holds the weights that are scored, so that a checkpoint is good for
prediction. What only resuming needs is in ``optimizer.safetensors``: momentum and the like and,
where the scored weights are a moving average, those that are trained. ``state.json`` says of which
run it is.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mbt_fast.checkpoint.files import read_safetensors
from mbt_fast.checkpoint.pretrained import WEIGHTS_FILE
from mbt_fast.checkpoint.runs import STATE_FILE, read_record
from mbt_fast.errors import CheckpointError
from mbt_fast.models.saved import Model, save_model
from mbt_fast.train.averaging import Ema

OPTIMIZER_FILE = "optimizer.safetensors"


@dataclass
class TrainingState:
    """The parts of a run that change from step to step.

    Args:
        model: What is trained.
        optimizer: Of its parameters.
        scaler: Of losses in float16; disabled otherwise.
        ema: Moving average of the weights, or ``None``.
    """

    model: Model
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Ema | None

    def scored(self) -> AbstractContextManager[None]:
        """Within it the model has the weights that are scored."""
        return nullcontext() if self.ema is None else self.ema.applied(self.model)

    def write(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Fill the folder of a checkpoint.

        Args:
            folder: An empty one.
            record: What ``state.json`` says beside what this class needs.

        Raises:
            OSError: A file cannot be written.
            safetensors.SafetensorError: Likewise.
        """
        from safetensors.torch import save_file

        tensors = _prefixed("optimizer", _optimizer_tensors(self.model, self.optimizer))
        if self.ema is not None:
            tensors |= _prefixed("weights", self.model.state_dict())
        save_file(tensors, folder / OPTIMIZER_FILE)
        save_model(folder, self.model, None if self.ema is None else self.ema.state_dict())
        text = json.dumps({**record, "scaler": self.scaler.state_dict()}, indent=2)
        (folder / STATE_FILE).write_text(text + "\n", encoding="utf-8")

    def read(self, folder: Path) -> None:
        """Go back to a checkpoint.

        Raises:
            CheckpointError: A file is malformed, or belongs to another model or optimizer.
            OSError: A file cannot be read.
        """
        weights = read_safetensors(folder / WEIGHTS_FILE)
        tensors = read_safetensors(folder / OPTIMIZER_FILE)
        if self.ema is not None:
            self.ema.load_state_dict(weights)
            # At the end of a run with train.average_last none are trained any more.
            weights = _without_prefix("weights", tensors) or weights
        self.model.load_state_dict(weights)
        momentum = _without_prefix("optimizer", tensors)
        _load_optimizer_tensors(self.model, self.optimizer, momentum)
        self.scaler.load_state_dict(read_record(folder)["scaler"])


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as ``{"momentum_buffer/blocks.0...": tensor}``.

    Raises:
        TypeError: The optimizer keeps something that is no tensor.
    """
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    tensors = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value is None:
                continue
            if not isinstance(value, Tensor):
                raise TypeError(f"{key} of the optimizer must be a tensor, got {value!r}")
            tensors[f"{key}/{names[parameter]}"] = value
    return tensors


def _load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Inverse of ``_optimizer_tensors``."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    order = [names[parameter] for group in groups for parameter in group["params"]]
    index = {name: place for place, name in enumerate(order)}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, parameter = name.partition("/")
        if parameter not in index:
            raise CheckpointError(f"{OPTIMIZER_FILE} must be of this optimizer, got {name!r}")
        state.setdefault(index[parameter], {})[key] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under longer names, on the CPU, each with memory of its own."""
    dense = torch.contiguous_format
    return {
        f"{prefix}/{name}": tensor.detach().cpu().clone(memory_format=dense)
        for name, tensor in tensors.items()
    }


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those under such names, by the names that they had before."""
    start = f"{prefix}/"
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }
