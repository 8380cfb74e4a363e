"""``mbt-fast bench``: backends and options side by side, per op, layer and model.

All variants give the same results. The fastest are marked, and one line of code takes the variant
that the model should use.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mbt_fast.layers.execution import RECOMPUTE
from mbt_fast.models import MBT, MBTConfig
from mbt_fast.profiling import runs
from mbt_fast.profiling.comparison import Comparisons, Row, fastest, times_as_fast
from mbt_fast.profiling.machine import choose_dtype, dtype_name, free_bytes, is_out_of_memory
from mbt_fast.profiling.measurement import NO_MEMORY
from mbt_fast.profiling.op_calls import ops_of, timed_call, verdicts_of
from mbt_fast.profiling.runs import Setting
from mbt_fast.profiling.timing import Deadline, Run, peak_memory, saved_bytes

DTYPES = (torch.bfloat16, torch.float32)
STOCK = ("sdpa", "reference")  # the first that has an op is its baseline
SHARES = {"op": 0.15, "layer": 0.2, "model": 0.7}  # of what is left; batch sizes get the rest
LAYER, VARIANTS, BATCH_SIZE = "fusion layer", "variants", "batch size"
INTERRUPTED, OUT_OF_MEMORY = "interrupted", "out of memory"
DOUBLINGS = 8
ROOM = 0.8  # of the free memory


@dataclass(frozen=True)
class Variant:
    """One way to run a model.

    Args:
        backend: ``"auto"`` or a name of the dispatch table.
        dtype: Of weights and inputs.
        recompute: As in ``Execution``; without effect in inference.
        cls_only: Whether the last layer computes its CLS rows only.
        capture: As a CUDA graph.
    """

    backend: str
    dtype: torch.dtype
    recompute: str = "norms"
    cls_only: bool = False
    capture: bool = False

    def name(self, setting: Setting) -> str:
        """What it is called among the variants of a setting."""
        words = [self.backend]
        if setting.mode == "train":
            words.append(f"recompute {self.recompute}")
        words += ["CLS rows only"] * self.cls_only + ["captured"] * self.capture
        if self.dtype != setting.dtype:
            words.append(dtype_name(self.dtype))
        return ", ".join(words)

    def apply(self, model: MBT) -> None:
        """Set the options of a model."""
        model.set_backend(self.backend).set_execution(
            recompute=self.recompute, cls_only=self.cls_only
        )

    def code(self) -> str:
        """A line of Python that does the same; it leaves out what is the default."""
        backend = f'.set_backend("{self.backend}")' if self.backend != "auto" else ""
        changes = [f'recompute="{self.recompute}"'] if self.recompute != "norms" else []
        changes += ["cls_only=True"] * self.cls_only
        execution = f".set_execution({', '.join(changes)})" if changes else ""
        line = f"model = model.to({self.dtype}){backend}{execution}"
        return f"{line}; model = model.capture(inputs)" if self.capture else line


def run(
    found: Comparisons,
    config: MBTConfig,
    *,
    seconds: float,
    sizes: Sequence[int] | None,
    any_dtype: bool,
) -> Variant | None:
    """Compare ops, layer, variants of the model and batch sizes.

    Args:
        found: Gets the rows.
        config: The model.
        seconds: For all, about.
        sizes: Batch sizes after the first; ``None`` doubles it while time and memory suffice.
        any_dtype: Whether other dtypes are compared too.

    Returns:
        The variant of the model to take; ``None`` if the models were not compared.

    Raises:
        RuntimeError: The memory does not suffice for anything at all.
    """
    chosen, deadline = None, Deadline(seconds)
    try:
        peak_memory(lambda: None, found.setting.device)  # a profiler's first start takes seconds
        compare_ops(found, config, deadline.share(SHARES["op"]))
        models = Models(config, found.setting)
        compare_layers(found, models.of(found.setting.dtype), deadline.share(SHARES["layer"]))
        of_model = deadline.share(SHARES["model"])
        chosen = compare_models(found, models, of_model, any_dtype=any_dtype)
        if chosen:
            compare_batch_sizes(found, models, chosen, sizes, deadline)
    except KeyboardInterrupt:
        found.cut_short = INTERRUPTED
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or not found.rows:
            raise
        found.cut_short = OUT_OF_MEMORY
    return chosen


def suggestion(found: Comparisons, chosen: Variant) -> list[dict[str, str]]:
    """The chosen variant and batch size, choice by choice."""
    setting, rows = found.setting, found.of("model", VARIANTS)
    row = next(row for row in rows if row.variant == chosen.name(setting))
    reason = f"{times_as_fast(row, rows[0])} times as fast as {rows[0].variant}"
    sizes = [row.batch_size for row in fastest(found.of("model", BATCH_SIZE))]
    size = min(sizes, default=setting.batch_size)
    recompute = {"recompute": chosen.recompute} if setting.mode == "train" else {}
    choices = {
        "backend": chosen.backend,
        "dtype": dtype_name(chosen.dtype),
        **recompute,
        "cls_only": "on" if chosen.cls_only else "off",
        "capture": "yes" if chosen.capture else "no",
    }
    return [
        *({"choice": c, "take": take, "reason": reason} for c, take in choices.items()),
        {"choice": BATCH_SIZE, "take": str(size), "reason": "most clips per second"},
    ]


def compare_ops(found: Comparisons, config: MBTConfig, deadline: Deadline) -> None:
    """Every op on every backend that can run it by name; stock PyTorch first."""
    setting = found.setting
    ops = dict(ops_of(config, setting))
    for index, (name, op) in enumerate(ops.items()):
        verdicts = verdicts_of(op, setting.device)
        found.taken[name] = next(b for b, said in verdicts.items() if "auto takes it" in said)
        calls = {
            backend: timed_call(partial(op.run, backend), op.leaves, setting)
            for backend, said in verdicts.items()
            if not said.startswith("no")
        }
        stock = next(backend for backend in STOCK if backend in calls)
        rows = [
            Row("op", name, backend, setting.batch_size, calls.get(backend), note=verdicts[backend])
            for backend in sorted(verdicts, key=lambda backend: backend != stock)
        ]
        found.add(rows, deadline.share(1 / (len(ops) - index)))


def compare_layers(found: Comparisons, model: MBT, deadline: Deadline) -> None:
    """The last layer by backend, and by what it computes and keeps; stock PyTorch first."""
    setting = found.setting
    variants = _readable(_variants(setting, _named(found)), model)
    streams, options, cls_rows = _layer_inputs(model, setting)
    layer = model.layers[-1]
    parameters = list(layer.parameters())

    def outs(variant: Variant) -> list[Tensor]:
        variant.apply(model)
        rows = cls_rows if variant.cls_only else None
        return list(layer(streams, {}, rows=rows, **options).values())

    leaves = [*parameters, *streams.values()]
    rows = [
        Row("layer", LAYER, name, setting.batch_size, timed_call(partial(outs, v), leaves, setting))
        for name, v in variants.items()
    ]
    found.add(rows, deadline)
    if setting.mode == "train":
        for index, row in enumerate(found.rows["layer", LAYER]):
            if row.ran:
                kept = saved_bytes(partial(outs, variants[row.variant]), parameters)
                found.rows["layer", LAYER][index] = replace(row, saved_bytes=kept)


def _layer_inputs(
    model: MBT, setting: Setting
) -> tuple[dict[str, Tensor], dict[str, int], list[int]]:
    """Random streams of a fusion layer, its options, and the CLS rows of each stream."""
    config = model.config
    rows = {m: config.n_tokens(m) + config.n_slots for m in config.modalities}
    across, cls_rows = config.fusion == "vanilla" and len(rows) > 1, [0]
    if across and config.share_encoder:
        counts = list(rows.values())
        cls_rows = [sum(counts[:index]) for index in range(len(counts))]
        rows = {"shared": sum(counts)}
    options = {"n_slots": config.n_slots, "pairwise": across and not config.share_encoder}
    streams = {
        name: torch.randn(setting.batch_size, count, config.hidden_size)
        .to(model.norm.weight)
        .requires_grad_(setting.mode == "train")
        for name, count in rows.items()
    }
    return streams, options, cls_rows


class Models:
    """The model in each dtype that is asked for, built once."""

    def __init__(self, config: MBTConfig, setting: Setting) -> None:
        """Build nothing yet."""
        self._config, self._setting = config, setting
        self._models: dict[torch.dtype, MBT] = {}

    def of(self, dtype: torch.dtype) -> MBT:
        """The model, with random weights."""
        if dtype not in self._models:
            setting = replace(self._setting, dtype=dtype)
            (self._models[dtype],) = runs.build_models([self._config], setting)
        return self._models[dtype]

    def row(self, entry: str, name: str, variant: Variant, batch_size: int) -> Row:
        """A row to be measured; weights are memory that does not grow with the batch."""
        weights = sum(parameter.nbytes for parameter in self.of(variant.dtype).parameters())
        call = self._call(variant, batch_size)
        return Row("model", entry, name, batch_size, call, resting_bytes=weights)

    def _call(self, variant: Variant, batch_size: int) -> Run:
        """A forward or a training step; its first call draws the inputs and captures the graph."""
        model = self.of(variant.dtype)
        setting = replace(self._setting, dtype=variant.dtype, batch_size=batch_size)
        prepared: list[Run] = []

        def call() -> None:
            variant.apply(model)
            if not prepared:
                inputs = runs.random_inputs(model, batch_size)
                if variant.capture:
                    prepared.append(partial(model.capture(inputs), inputs))
                else:
                    prepared.append(runs.step_of(model, inputs, setting))
            prepared[0]()

        return call


def compare_models(
    found: Comparisons, models: Models, deadline: Deadline, *, any_dtype: bool
) -> Variant | None:
    """Compare the variants of the model at the first batch size.

    Returns:
        The fastest, and of those that are as fast the one that needs the least memory; ``None`` if
        none ran beside the first.
    """
    setting = found.setting
    passed_over = {*STOCK, found.taken["bottleneck_attention"]}
    variants = _variants(setting, [name for name in _named(found) if name not in passed_over])
    more = []
    if setting.mode == "forward" and setting.device.type == "cuda":
        more.append(Variant("auto", setting.dtype, cls_only=True, capture=True))
    others = [Variant("auto", dtype) for dtype in DTYPES if any_dtype and dtype != setting.dtype]
    best_dtype, why = choose_dtype("auto", setting.device)
    emulated = [v for v in others if v.dtype != torch.float32 and best_dtype == torch.float32]
    more += [variant for variant in others if variant not in emulated]
    variants |= {variant.name(setting): variant for variant in more}
    variants = _readable(variants, models.of(setting.dtype))
    size = setting.batch_size
    rows = [models.row(VARIANTS, name, variant, size) for name, variant in variants.items()]
    rows += [  # one call may take a minute
        Row("model", VARIANTS, v.name(setting), size, note=f"not run: {why}") for v in emulated
    ]
    found.add(rows, deadline)
    measured = found.of("model", VARIANTS)
    best = fastest(measured) if sum(row.ran for row in measured) > 1 else []
    return variants[min(best, key=lambda row: row.peak_bytes or 0).variant] if best else None


def compare_batch_sizes(
    found: Comparisons,
    models: Models,
    variant: Variant,
    sizes: Sequence[int] | None,
    deadline: Deadline,
) -> None:
    """A variant at growing batch sizes, as far as time and memory suffice."""
    setting = found.setting
    rows = {row.variant: row for row in found.of("model", VARIANTS)}
    peak = rows[variant.name(setting)].measurement.peak_bytes or 0
    most = ROOM * free_bytes(setting.device) / peak * setting.batch_size if peak else 0
    if sizes is None:
        sizes = [setting.batch_size << power for power in range(1, DOUBLINGS + 1)]
    grown = []
    for size in (setting.batch_size, *sizes):
        row = models.row(BATCH_SIZE, f"batch {size}", variant, size)
        if size > max(most, setting.batch_size):
            row = replace(row, call=None, note=NO_MEMORY)
        grown.append(row)
    found.add(grown, deadline)


def _named(found: Comparisons) -> list[str]:
    """Backends that can run the attention of the model when they are named."""
    rows = found.of("op", "bottleneck_attention")
    return [row.variant for row in rows if not row.note.startswith("no")]


def _readable(variants: dict[str, Variant], model: MBT) -> dict[str, Variant]:
    """The variants with what the head of a model reads: CLS rows alone only where it has them."""
    has_cls = model.config.n_cls > 0
    return {name: v for name, v in variants.items() if has_cls or not v.cls_only}


def _variants(setting: Setting, named: Iterable[str]) -> dict[str, Variant]:
    """By name: stock PyTorch, the defaults of a model, what may be changed of them, backends."""
    modes = RECOMPUTE if setting.mode == "train" else ("norms",)
    variants = [
        Variant("sdpa", setting.dtype, modes[0]),
        *(Variant("auto", setting.dtype, recompute) for recompute in modes),
        Variant("auto", setting.dtype, cls_only=True),
        *(Variant(backend, setting.dtype) for backend in named),
    ]
    return {variant.name(setting): variant for variant in variants}
