"""Latency and memory of many models that share their weights."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mbt_fast.models import MBT, MBTConfig
from mbt_fast.testing import interleaved_times, peak_memory
from mbt_fast.testing.timing import median_and_tails

MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """How the models are run."""

    mode: str
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    backend: str


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model: seconds of every call, maybe none, and bytes at the peak."""

    seconds: list[float]
    peak_bytes: int

    def as_record(self, batch_size: int) -> dict[str, float | int]:
        """The measured part of a record."""
        memory = {"peak_memory_mb": self.peak_bytes / MIB, "rounds": len(self.seconds)}
        if not self.seconds:
            return memory
        middle, low, high = median_and_tails(self.seconds)
        return {
            "latency_ms_median": 1e3 * middle,
            "latency_ms_p20": 1e3 * low,
            "latency_ms_p80": 1e3 * high,
            "clips_per_second": batch_size / middle,
            **memory,
        }


class Outcome(NamedTuple):
    """Measurement by index of the model, and whether a KeyboardInterrupt left some out."""

    measured: dict[int, Measurement]
    interrupted: bool


def measure(
    configs: Sequence[MBTConfig],
    setting: Setting,
    *,
    seconds: float,
    max_rounds: int,
    on_call: Callable[[], None],
) -> Outcome:
    """Measure every model, in interleaved rounds after one warm-up that counts the memory.

    Args:
        configs: The models; those with the same encoder share their weights.
        setting: How they are run.
        seconds: Start no further round that would end after this; two are run in any case.
        max_rounds: No more rounds than this.
        on_call: Told of each finished call, for a progress bar.

    Returns:
        What was measured, all of it or up to a KeyboardInterrupt.
    """
    start = time.perf_counter()
    peaks: dict[int, int] = {}
    try:
        inputs = random_inputs(configs[0], setting)
        steps = [step_of(model, inputs, setting) for model in build_models(configs, setting)]
        for index, step in enumerate(steps):
            peaks[index] = step.resting_bytes + peak_memory(step, setting.device)
            on_call()
    except KeyboardInterrupt:
        return Outcome({index: Measurement([], peak) for index, peak in peaks.items()}, True)
    times = interleaved_times(
        {str(index): step for index, step in enumerate(steps)},
        setting.device,
        seconds=seconds - (time.perf_counter() - start),
        max_rounds=max_rounds,
        on_call=lambda name, elapsed: on_call(),
    )
    measured = {i: Measurement(times.seconds[str(i)], peak) for i, peak in peaks.items()}
    return Outcome(measured, times.interrupted)


def build_models(configs: Sequence[MBTConfig], setting: Setting) -> list[MBT]:
    """Models on the device; parameters of the same name and shape are the same tensors."""
    pool: dict[tuple[str, torch.Size], Tensor] = {}
    models = []
    for config in configs:
        with torch.device("meta"):
            model = MBT(config)
        for name, parameter in model.named_parameters():
            key = (name, parameter.shape)
            if key not in pool:
                pool[key] = _draw(name, parameter.shape, setting)
        state = {name: pool[name, p.shape] for name, p in model.named_parameters()}
        model.load_state_dict(state, assign=True)
        model.set_backend(setting.backend).train(setting.mode == "train")
        models.append(model)
    return models


def random_inputs(config: MBTConfig, setting: Setting) -> dict[str, Tensor]:
    """One batch of normally distributed inputs; speed may depend on data, never on zeros."""
    with torch.device("meta"):
        model = MBT(config)
    return {
        modality: torch.randn(
            setting.batch_size,
            *model.embedding(modality).input_shape,
            device=setting.device,
            dtype=setting.dtype,
        )
        for modality in config.modalities
    }


def _draw(name: str, shape: torch.Size, setting: Setting) -> Tensor:
    """Weights of a trained scale: ones for norms, else normal with variance 1 / fan-in."""
    weights = torch.empty(shape, device=setting.device, dtype=setting.dtype)
    if ".norm" in name or name.startswith("norm"):
        return weights.fill_(1.0 if name.endswith("weight") else 0.0)
    fan_in = shape[1:].numel() if len(shape) > 1 else shape.numel()
    return weights.normal_(std=fan_in**-0.5)


@dataclass(frozen=True)
class Step:
    """One call to time: a forward pass, or forward, loss and backward without the optimiser."""

    model: MBT
    inputs: Mapping[str, Tensor]
    targets: Tensor | None

    def __call__(self) -> None:
        """Run it."""
        if self.targets is None:
            with torch.inference_mode():
                self.model(self.inputs)
            return
        logits = self.model.forward_modalities(self.inputs)
        _loss(logits, self.targets).backward()
        self.model.zero_grad(set_to_none=True)

    @property
    def resting_bytes(self) -> int:
        """Weights and inputs, which exist before the call."""
        held = [*self.model.parameters(), *self.inputs.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def step_of(model: MBT, inputs: Mapping[str, Tensor], setting: Setting) -> Step:
    """The call that a setting asks for; in training with random targets."""
    if setting.mode == "forward":
        return Step(model, inputs, None)
    targets = torch.rand(
        setting.batch_size,
        model.config.num_classes,
        device=setting.device,
        dtype=setting.dtype,
    )
    return Step(model, inputs, targets)


def _loss(logits: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Mean over modalities of the cross-entropy summed over classes: the official loss."""
    losses = [
        binary_cross_entropy_with_logits(value, targets, reduction="sum") / len(targets)
        for value in logits.values()
    ]
    return torch.stack(losses).mean()
