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
from mbt_fast.parallel.data_parallel import share_like, whole
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

        resumed, scored = self._tensors()
        save_file(
            {name: _copied(tensor) for name, tensor in resumed.items()}, folder / OPTIMIZER_FILE
        )
        save_model(folder, self.model, {name: _on_cpu(tensor) for name, tensor in scored.items()})
        text = json.dumps({**record, "scaler": self.scaler.state_dict()}, indent=2)
        (folder / STATE_FILE).write_text(text + "\n", encoding="utf-8")

    def take_part(self) -> None:
        """What the process that writes needs of the others: their shares of sharded tensors."""
        for tensors in self._tensors():
            for tensor in tensors.values():
                whole(tensor)

    def read(self, folder: Path) -> None:
        """Go back to a checkpoint.

        Raises:
            CheckpointError: A file is malformed, or belongs to another model or optimizer.
            OSError: A file cannot be read.
        """
        weights = read_safetensors(folder / WEIGHTS_FILE)
        tensors = read_safetensors(folder / OPTIMIZER_FILE)
        if self.ema is not None:
            self.ema.load_state_dict(share_like(weights, self.ema.state_dict()))
            # At the end of a run with train.average_last none are trained any more.
            weights = _without_prefix("weights", tensors) or weights
        self.model.load_state_dict(share_like(weights, self.model.state_dict()))
        momentum = _without_prefix("optimizer", tensors)
        _load_optimizer_tensors(self.model, self.optimizer, momentum)
        self.scaler.load_state_dict(read_record(folder)["scaler"])

    def _tensors(self) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        """What only resuming needs, and what is scored; sharded if the model is."""
        resumed = _prefixed("optimizer", _optimizer_tensors(self.model, self.optimizer))
        if self.ema is None:
            return resumed, self.model.state_dict()
        resumed |= _prefixed("weights", self.model.state_dict())
        return resumed, self.ema.state_dict()


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
    own = dict(model.named_parameters())
    names = {parameter: name for name, parameter in own.items()}
    groups = optimizer.param_groups
    order = [names[parameter] for group in groups for parameter in group["params"]]
    index = {name: place for place, name in enumerate(order)}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, parameter = name.partition("/")
        if parameter not in index:
            raise CheckpointError(f"{OPTIMIZER_FILE} must be of this optimizer, got {name!r}")
        (share,) = share_like({parameter: tensor}, own).values()
        state.setdefault(index[parameter], {})[key] = share
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under longer names."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _on_cpu(tensor: Tensor) -> Tensor:
    """All of it; a GPU that has a share of each may not have room for all."""
    return whole(tensor.detach()).cpu()


def _copied(tensor: Tensor) -> Tensor:
    """All of it, on the CPU, with memory of its own."""
    return _on_cpu(tensor).clone(memory_format=torch.contiguous_format)


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those under such names, by the names that they had before."""
    start = f"{prefix}/"
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }
