"""What is measured: models and inputs, and how they are run."""

import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import mbt_fast
from mbt_fast.models import MBT, MBTConfig
from mbt_fast.ops import extension
from mbt_fast.profiling import machine
from mbt_fast.profiling.timing import Run

MODES = ("forward", "train")


@dataclass(frozen=True)
class Setting:
    """How models are run."""

    mode: str
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    backend: str = "auto"


def build_models(
    configs: Sequence[MBTConfig], setting: Setting, weights: dict[str, Tensor] | None = None
) -> list[MBT]:
    """Models on the device; parameters of the same name and shape are the same tensors.

    Args:
        configs: Of the models.
        setting: How they are run.
        weights: Parameters by name that they share too; gets those that are new.
    """
    weights = {} if weights is None else weights
    models = []
    for config in configs:
        model = build_model(config, setting.device, setting.dtype, weights)
        weights |= model.named_parameters()
        models.append(model.set_backend(setting.backend).train(setting.mode == "train"))
    return models


def build_model(
    config: MBTConfig, device: torch.device, dtype: torch.dtype, weights: Mapping[str, Tensor]
) -> MBT:
    """A model with random weights of a trained scale, apart from those ``weights`` that fit it."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a profile costs models that nobody would train, too
        model = MBT(config)
    state = {}
    for name, parameter in model.named_parameters():
        given = weights.get(name)
        if given is None or given.shape != parameter.shape:
            given = _draw(name, torch.empty(parameter.shape, device=device, dtype=dtype))
        state[name] = given
    model.load_state_dict(state, assign=True)
    return model


def _draw(name: str, weight: Tensor) -> Tensor:
    """Ones and zeros for norms, else normal with variance 1 / fan-in."""
    if ".norm" in name or name.startswith("norm"):
        return weight.fill_(1.0 if name.endswith("weight") else 0.0)
    fan_in = weight[0].numel() if weight.ndim > 1 else weight.numel()
    return weight.normal_(std=fan_in**-0.5)


def random_inputs(model: MBT, batch_size: int) -> dict[str, Tensor]:
    """One batch of normally distributed inputs; zeros might be faster than real data."""
    weight = model.norm.weight
    shapes = {m: model.embedding(m).input_shape for m in model.config.modalities}
    return {
        modality: torch.randn(batch_size, *shape, device=weight.device, dtype=weight.dtype)
        for modality, shape in shapes.items()
    }


def step_of(model: MBT, inputs: Mapping[str, Tensor], setting: Setting) -> Run:
    """The call that is timed: a forward pass, or forward, loss and backward.

    The loss is the official one, of random targets: the cross-entropy summed over classes, and its
    mean over modalities. There is no step of an optimiser.
    """
    if setting.mode == "forward":
        return torch.inference_mode()(lambda: model(inputs))
    shape = (setting.batch_size, model.config.num_classes)
    targets = torch.rand(shape, device=setting.device, dtype=setting.dtype)

    def step() -> None:
        losses = [
            binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(targets)
            for logits in model.forward_modalities(inputs).values()
        ]
        torch.stack(losses).mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def conditions(config: MBTConfig, setting: Setting, why_dtype: str, **more: str) -> dict[str, str]:
    """What a reader needs to judge the numbers, and the command to repeat them.

    Args:
        config: The model.
        setting: How it is run.
        why_dtype: As ``machine.choose_dtype`` says.
        **more: Other conditions, by name.
    """
    tokens = ", ".join(f"{config.n_tokens(m)} {m}" for m in config.modalities)
    sizes = ", ".join(f"{m} {'x'.join(map(str, config.input_size[m]))}" for m in config.modalities)
    step = "forward, loss and backward" if setting.mode == "train" else "forward, inference mode"
    return {
        "model": f"{config.num_layers} layers of width {config.hidden_size}",
        "input": f"{sizes}; own tokens: {tokens}",
        "call": f"{step}, batch {setting.batch_size}",
        "device": f"{machine.device_name(setting.device)}, {torch.get_num_threads()} CPU threads",
        "dtype": f"{machine.dtype_name(setting.dtype)} ({why_dtype})",
        **_kernels(setting.device),
        **more,
        "versions": f"mbt_fast {mbt_fast.__version__}, torch {torch.__version__}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["mbt-fast", *sys.argv[1:]]),
    }


def _kernels(device: torch.device) -> dict[str, str]:
    """What the CPU has beside torch's own functions, or why it has nothing else."""
    if device.type != "cpu":
        return {}
    why_not = "; ".join(extension.why_no_cpu_kernels())
    if why_not:
        return {"kernels": f"none, PyTorch's own functions run: {why_not}"}
    return {"kernels": f"C++ for {extension.instruction_set()}"}


def as_lines(conditions: Mapping[str, Any]) -> str:
    """One line per condition."""
    return "\n".join(f"{name}: {value}" for name, value in conditions.items())
