"""What is measured: models and inputs, how they are run, and the record of one measurement."""

import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import mbt_fast
from mbt_fast import dispatch
from mbt_fast.models import MBT, MBTConfig
from mbt_fast.profiling import machine
from mbt_fast.profiling.timing import (
    Deadline,
    Run,
    interleaved_times,
    median_and_tails,
    peak_memory,
    timed,
)

MODES = ("forward", "train")
ENDS = ("median", "p20", "p80")
MIB = 2**20
MIN_ROUNDS, MAX_ROUNDS = 2, 100
NO_TIME = "not run: --seconds were over"
NO_MEMORY = "not run: it does not fit into memory"


@dataclass(frozen=True)
class Setting:
    """How models are run."""

    mode: str
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    backend: str = "auto"


@dataclass(frozen=True)
class Measurement:
    """What was measured of one call.

    Args:
        seconds: Of each round; empty if the call was left out. The same round of another call was
            measured next to it.
        peak_bytes: Of tensors that exist in the call and not before it.
        why_not: Why the call was left out.
    """

    seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    why_not: str = ""

    @property
    def median(self) -> float:
        """Seconds of a call."""
        return median_and_tails(self.seconds)[0]

    def as_record(self, batch_size: int, resting_bytes: int = 0) -> dict[str, float | int | None]:
        """Latency, memory and throughput; ``None`` where nothing was measured.

        Args:
            batch_size: Clips of a call.
            resting_bytes: Weights and inputs, which exist before the call.
        """
        ends: dict[str, float | None] = {f"latency_ms_{end}": None for end in ENDS}
        if self.seconds:
            tails = median_and_tails(self.seconds)
            ends = {key: 1e3 * value for key, value in zip(ends, tails, strict=True)}
        peak = None if self.peak_bytes is None else (resting_bytes + self.peak_bytes) / MIB
        return {
            **ends,
            "peak_memory_mb": peak,
            "clips_per_second": batch_size / self.median if self.seconds else None,
            "rounds": len(self.seconds),
        }


class Outcome(NamedTuple):
    """Measurements by name, and whether a KeyboardInterrupt cut them short."""

    measured: dict[str, Measurement]
    interrupted: bool


def measure(
    calls: Mapping[str, Run],
    device: torch.device,
    deadline: Deadline,
    *,
    may_leave_out: bool = False,
    on_call: Callable[[], object] = lambda: None,
) -> Outcome:
    """Run every call once, which warms it up and counts its memory; then time them in rounds.

    Args:
        calls: By name.
        device: Where they run.
        deadline: No further round starts that would end later; two rounds run in any case.
        may_leave_out: Leave out calls that do not fit into memory or that a backend refuses, and
            those after the first for which the time does not suffice.
        on_call: Called after each call.

    Returns:
        What was measured, all of it or up to a KeyboardInterrupt.
    """
    found: dict[str, Measurement] = {}
    warm: dict[str, float] = {}  # seconds of the second call, if they matter
    try:
        for name, call in calls.items():
            if may_leave_out and warm and deadline.left() < _still_to_spend(warm):
                found[name] = Measurement(why_not=NO_TIME)
                continue
            try:
                found[name] = Measurement(peak_bytes=peak_memory(call, device))
                warm[name] = timed(call, device) if may_leave_out else 0.0
            except (RuntimeError, MemoryError) as error:
                if not may_leave_out:
                    raise
                found[name] = Measurement(why_not=_why_left_out(error))
                continue
            on_call()
    except KeyboardInterrupt:
        return Outcome(found, interrupted=True)
    times = interleaved_times(
        {name: calls[name] for name in warm},
        device,
        seconds=deadline.left(),
        min_rounds=MIN_ROUNDS,
        max_rounds=MAX_ROUNDS,
        on_call=lambda name, elapsed: on_call(),
    )
    for name, seconds in times.seconds.items():
        found[name] = Measurement(tuple(seconds), found[name].peak_bytes)
    return Outcome(found, times.interrupted)


def _still_to_spend(warm: Mapping[str, float]) -> float:
    """Seconds for the least rounds of all so far, and for one more that is twice as slow."""
    return MIN_ROUNDS * sum(warm.values()) + 2 * (1 + MIN_ROUNDS) * max(warm.values())


def _why_left_out(error: RuntimeError | MemoryError) -> str:
    """Raises the error again if it is a bug."""
    if isinstance(error, dispatch.BackendError):
        return str(error)
    if machine.is_out_of_memory(error):
        return NO_MEMORY
    raise error


def build_models(configs: Sequence[MBTConfig], setting: Setting) -> list[MBT]:
    """Models on the device; parameters of the same name and shape are the same tensors."""
    weights: dict[str, Tensor] = {}
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
        **more,
        "versions": f"mbt_fast {mbt_fast.__version__}, torch {torch.__version__}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["mbt-fast", *sys.argv[1:]]),
    }


def as_lines(conditions: Mapping[str, Any]) -> str:
    """One line per condition."""
    return "\n".join(f"{name}: {value}" for name, value in conditions.items())
