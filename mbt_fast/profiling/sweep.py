"""``mbt-fast profile``: what each fusion costs at each fusion layer, as records.

A record is a dict: the model and how it is run, FLOPs in closed form, and what was measured.
``sweep_table`` and ``sweep_page`` show them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor

from mbt_fast import dispatch
from mbt_fast.flops import forward_flops, training_flops
from mbt_fast.models import MBT, MBTConfig
from mbt_fast.profiling import machine, measurement, plan, runs
from mbt_fast.profiling.measurement import INTERRUPTED, MIB, NO_MEMORY, NO_TIME, Measurement
from mbt_fast.profiling.plan import Plan
from mbt_fast.profiling.runs import Setting
from mbt_fast.profiling.timing import Deadline, Run

# Names on the command line: fusion, share_encoder.
FUSIONS = {
    "bottleneck": ("bottleneck", False),
    "vanilla": ("vanilla", False),
    "vanilla-shared": ("vanilla", True),
}
GIGA = 1e9

Record = dict[str, Any]


def variants(
    base: MBTConfig,
    fusion_layers: Iterable[int],
    fusions: Iterable[str],
    n_bottlenecks: Sequence[int],
) -> list[MBTConfig]:
    """Every fusion at every fusion layer; bottleneck fusion also for every number of tokens."""
    layers = list(fusion_layers)
    return [
        replace(base, fusion=fusion, share_encoder=share, fusion_layer=layer, n_bottlenecks=n_slots)
        for fusion, share in (FUSIONS[name] for name in fusions)
        for layer in layers
        for n_slots in (n_bottlenecks if fusion == "bottleneck" else n_bottlenecks[:1])
    ]


def gflops_of(config: MBTConfig, mode: str, cost: str = "efficient") -> float:
    """GFLOPs of one clip."""
    return _count(mode)(config, cost).total / GIGA


def record_of(config: MBTConfig, setting: Setting) -> Record:
    """The record of one model before it has been measured."""
    cost = _count(setting.mode)(config)
    return {
        "fusion": config.fusion,
        "share_encoder": config.share_encoder,
        "fusion_layer": config.fusion_layer,
        "n_bottlenecks": config.n_bottlenecks,
        "batch_size": setting.batch_size,
        "device": machine.device_name(setting.device),
        "dtype": machine.dtype_name(setting.dtype),
        "backend": setting.backend,
        "mode": setting.mode,
        "gflops": cost.total / GIGA,
        "gflops_attention": cost.attention / GIGA,
        "gflops_linear": cost.linear / GIGA,
        "gflops_stem_head": cost.stem_head / GIGA,
        "gflops_official": gflops_of(config, setting.mode, "official"),
        **measured_part(Measurement(), setting.batch_size),
    }


def measure(
    records: Sequence[Record],
    configs: Sequence[MBTConfig],
    base: MBTConfig,
    setting: Setting,
    seconds: float,
    *,
    on_plan: Callable[[Plan], object] = lambda plan: None,
    on_call: Callable[[], object] = lambda: None,
) -> bool:
    """Measure one call, then of each distinct computation what fits; fill in the records.

    Args:
        records: One for each config.
        configs: The models; those with the same encoder share their weights.
        base: The model at its own fusion layer, the last to be left out.
        setting: How they are run.
        seconds: For all.
        on_plan: Called once with what will be measured.
        on_call: Called after each call.

    Returns:
        Whether a KeyboardInterrupt left some out.

    Raises:
        MemoryError: Not even one model fits.
    """
    deadline = Deadline(seconds)
    models = _Models(configs, setting, on_call)
    chosen = _by_importance(models.distinct, base)
    first, interrupted = chosen[0][0], False
    try:
        interrupted = models.measure([first], deadline, max_rounds=1)
        if not interrupted:
            one_call = models.of(first).seconds[0]
            passed = seconds - deadline.left()
            found = plan.choose(
                chosen, models.costs, of_first=one_call, passed=passed, seconds=seconds
            )
            on_plan(found)
            least = min(found.rounds, measurement.MIN_ROUNDS)
            interrupted = models.measure(found.names, deadline, min_rounds=least)
    except KeyboardInterrupt:  # while models were built
        interrupted = True
    for record, config in zip(records, configs, strict=True):
        record.update(models.record_of(computed_as(config), interrupted))
    return interrupted


def _by_importance(distinct: Mapping[str, MBTConfig], base: MBTConfig) -> list[list[str]]:
    """Names of the models of each fusion layer; the layer that is left out first comes last."""
    layers = [config.fusion_layer for config in distinct.values()]
    return [
        [name for name, config in distinct.items() if config.fusion_layer == layer]
        for layer in plan.by_importance(layers, base.fusion_layer)
    ]


class _Models:
    """The distinct models of a profile: built when they are measured, with weights in common."""

    def __init__(
        self, configs: Sequence[MBTConfig], setting: Setting, on_call: Callable[[], object]
    ) -> None:
        self._setting, self._on_call = setting, on_call
        self.distinct = {str(i): c for i, c in enumerate(dict.fromkeys(map(computed_as, configs)))}
        self.costs = {name: gflops_of(c, setting.mode) for name, c in self.distinct.items()}
        self._models: dict[str, MBT] = {}
        self._weights: dict[str, Tensor] = {}
        self._inputs: dict[str, Tensor] = {}
        self._measured: dict[str, Measurement] = {}

    def of(self, name: str) -> Measurement:
        """What was measured of a model.

        Raises:
            MemoryError: It does not fit.
        """
        found = self._measured[name]
        if found.why_not == NO_MEMORY:
            raise MemoryError(NO_MEMORY)
        return found

    def measure(
        self,
        names: Sequence[str],
        deadline: Deadline,
        min_rounds: int | None = None,
        max_rounds: int | None = None,
    ) -> bool:
        """Measure models; return whether a KeyboardInterrupt left some out."""
        steps = {}
        for name in names:
            try:
                steps[name] = self._step(name)
            except (RuntimeError, MemoryError) as error:
                if not machine.is_out_of_memory(error):
                    raise
                self._measured[name] = Measurement(why_not=NO_MEMORY)
        outcome = measurement.measure(
            steps,
            self._setting.device,
            deadline,
            before=self._measured,
            costs=self.costs,
            min_rounds=min_rounds,
            max_rounds=max_rounds,
            on_call=self._on_call,
        )
        self._measured |= outcome.measured
        return outcome.interrupted

    def _step(self, name: str) -> Run:
        if name not in self._models:
            config = self.distinct[name]
            (self._models[name],) = runs.build_models([config], self._setting, self._weights)
        model = self._models[name]
        self._inputs = self._inputs or runs.random_inputs(model, self._setting.batch_size)
        return runs.step_of(model, self._inputs, self._setting)

    def record_of(self, config: MBTConfig, interrupted: bool) -> Record:
        """The measured part of a record."""
        name = next(name for name, known in self.distinct.items() if known == config)
        left_out = Measurement(why_not=INTERRUPTED if interrupted else NO_TIME)
        found = self._measured.get(name, left_out)
        resting = 0
        if name in self._models:
            resting = sum(
                x.nbytes for x in (*self._models[name].parameters(), *self._inputs.values())
            )
        return measured_part(found, self._setting.batch_size, resting)


def measured_part(found: Measurement, batch_size: int, resting_bytes: int = 0) -> Record:
    """Latency, memory and throughput; ``None`` where nothing was measured.

    Args:
        found: What was measured.
        batch_size: Clips of a call.
        resting_bytes: Weights and inputs, which exist before the call.
    """
    peak = found.peak_bytes
    return {
        "latency_ms_quick": 1e3 * found.quick if found.seconds else None,
        **found.latencies(),
        "latency_ms_rounds": [1e3 * seconds for seconds in found.seconds],
        "peak_memory_mb": None if peak is None else (resting_bytes + peak) / MIB,
        "clips_per_second": batch_size / found.quick if found.seconds else None,
        "rounds": len(found.seconds),
        "why_not": found.why_not,
    }


def computed_as(config: MBTConfig) -> MBTConfig:
    """The config that stands for all that compute the same: with late fusion nothing is fused."""
    if config.fusion_layer < config.num_layers:
        return config
    return replace(config, fusion="bottleneck", n_bottlenecks=0)


def conditions(
    base: MBTConfig,
    setting: Setting,
    why_dtype: str,
    records: Sequence[Record],
    *,
    measured: bool,
    interrupted: bool = False,
    **more: str,
) -> dict[str, str]:
    """Under which the records were taken; ``more`` are other conditions, by name."""
    counts = sorted({record["rounds"] for record in records if record["rounds"]}) or [0]
    span = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    cut_short = "; interrupted" if interrupted else ""
    of_run = {
        "attention": _attention(base, setting),
        "rounds": f"{span}, interleaved after the first, which follows a warm-up call if there was "
        f"time; late fusion without shared weights measured once{cut_short}",
        "memory": "weights, inputs and the peak of tensors allocated in the call",
    }
    said = runs.conditions(base, setting, why_dtype, **of_run, **more)
    if measured:
        return said
    about_model = ("model", "input", "versions", "date", "command")
    return {**{name: said[name] for name in about_model}, "rounds": "none: FLOPs only"}


def _attention(config: MBTConfig, setting: Setting) -> str:
    """Who runs it: pairwise attention may have no kernel where attention within a stream has."""
    rows = max(config.n_tokens(m) for m in config.modalities)
    runs_it = []
    for op, what in (
        ("bottleneck_attention", "within streams"),
        ("dense_attention", "pairwise (vanilla, own weights)"),
    ):
        call = dispatch.Call(op, setting.device, setting.dtype, rows)
        with suppress(dispatch.BackendError):
            runs_it.append(f"{what} by {dispatch.select(call, setting.backend).name}")
    return ", ".join(runs_it)


def _count(mode: str) -> Callable[..., Any]:
    return forward_flops if mode == "forward" else training_flops
