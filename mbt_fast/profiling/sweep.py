"""``mbt-fast profile``: what each fusion costs at each fusion layer, as records, table and page.

A record is a dict: the model and how it is run, FLOPs in closed form, and what was measured.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from mbt_fast import dispatch
from mbt_fast.flops import forward_flops, training_flops
from mbt_fast.models import MBTConfig
from mbt_fast.profiling import figure3, machine, plots, runs, tables
from mbt_fast.profiling.page import Section, render
from mbt_fast.profiling.runs import ENDS, Measurement, Setting
from mbt_fast.profiling.tables import ABSENT, significant, with_tails
from mbt_fast.profiling.timing import Deadline

# Names on the command line: fusion, share_encoder.
FUSIONS = {
    "bottleneck": ("bottleneck", False),
    "vanilla": ("vanilla", False),
    "vanilla-shared": ("vanilla", True),
}
GIGA = 1e9
UNITS = "GFLOPs per clip, 2 per multiply-add; the total includes stem and head."
MACS = "GMACs per clip, 1 per multiply-add; the total includes stem and head."
RATIOS = "Ratios are to vanilla fusion with own weights at the same fusion layer L_f."
TITLE = "What fusion costs: MBT, layer by layer"
VARIANTS = """\
bottleneck: the modalities exchange only B shared tokens (Eq. 7-9 of arXiv 2107.00135).

vanilla (own weights): pairwise attention. Each modality's tokens attend to all tokens, with the \
modality's own weights (Eq. 5-6).

vanilla (shared weights): self-attention over all tokens, with one set of weights (Eq. 4).

Fusion layer 0 is early fusion. At the number of layers only the logits meet: late fusion."""

Record = dict[str, Any]
Series = dict[str, list[plots.Point]]


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
        **Measurement().as_record(setting.batch_size),
    }


def measure(
    records: Sequence[Record],
    configs: Sequence[MBTConfig],
    setting: Setting,
    deadline: Deadline,
    on_call: Callable[[], object] = lambda: None,
) -> bool:
    """Measure each distinct computation once, and fill in the records.

    Args:
        records: One for each config.
        configs: The models; those with the same encoder share their weights.
        setting: How they are run.
        deadline: No round starts that would end later, after the first two.
        on_call: Called after each call.

    Returns:
        Whether a KeyboardInterrupt left some out.
    """
    distinct = list(dict.fromkeys(map(computed_as, configs)))
    models = runs.build_models(distinct, setting)
    inputs = runs.random_inputs(models[0], setting.batch_size)
    steps = {str(i): runs.step_of(model, inputs, setting) for i, model in enumerate(models)}
    outcome = runs.measure(steps, setting.device, deadline, on_call=on_call)
    for record, config in zip(records, configs, strict=True):
        index = distinct.index(computed_as(config))
        found = outcome.measured.get(str(index), Measurement())
        resting = sum(x.nbytes for x in (*models[index].parameters(), *inputs.values()))
        record.update(found.as_record(setting.batch_size, resting))
    return outcome.interrupted


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
) -> dict[str, str]:
    """Under which the records were taken."""
    counts = sorted({record["rounds"] for record in records})
    span = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    more = {
        "attention": _attention(base, setting),
        "rounds": f"{span} rounds, interleaved, after one warm-up call; late fusion without shared "
        "weights measured once" + ("; interrupted" if interrupted else ""),
        "memory": "weights, inputs and the peak of tensors allocated in the call",
    }
    said = runs.conditions(base, setting, why_dtype, **more)
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


def series_name(record: Mapping[str, Any]) -> str:
    """What a line of the plots is called; records that differ in the fusion layer share it."""
    if record["fusion"] == "bottleneck":
        shared = ", shared weights" if record["share_encoder"] else ""
        return f"bottleneck (B = {record['n_bottlenecks']}{shared})"
    return f"{record['fusion']} ({'shared' if record['share_encoder'] else 'own'} weights)"


def table(
    records: Sequence[Record], *, official: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Headers and cells; columns without a value are left out.

    Args:
        records: Of a profile.
        official: Whether to show what the official code spends.
    """
    pairwise = {
        r["fusion_layer"]: r for r in records if r["fusion"] == "vanilla" and not r["share_encoder"]
    }

    def ratio(record: Record, key: str, digits: int) -> str:
        base = pairwise.get(record["fusion_layer"], {}).get(key)
        value = record[key]
        return f"{value / base:.{digits}f}" if base and value is not None else ABSENT

    columns: dict[str, Callable[[Record], str]] = {
        "fusion": series_name,
        "L_f": lambda record: str(record["fusion_layer"]),
        "linear\nGFLOPs": lambda record: _gflops(record["gflops_linear"]),
        "attention\nGFLOPs": lambda record: _gflops(record["gflops_attention"]),
        "total\nGFLOPs": lambda record: _gflops(record["gflops"]),
        "total\nratio": partial(ratio, key="gflops", digits=3),
        "official\ncode": lambda r: _gflops(r["gflops_official"]) if official else ABSENT,
        "median ms\n[p20-p80]": lambda r: with_tails([r[f"latency_ms_{end}"] for end in ENDS]),
        "time\nratio": partial(ratio, key="latency_ms_median", digits=2),
        "peak\nMB": lambda record: significant(record["peak_memory_mb"]),
        "clips/s": lambda record: significant(record["clips_per_second"]),
    }
    return tables.cells(records, columns)


def _gflops(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else significant(value)


def text(records: Sequence[Record], *, macs: bool = False) -> str:
    """The table for a terminal. Needs the package ``tabulate``.

    Args:
        records: Of a profile.
        macs: Count a multiply-add as one, not two.
    """
    if macs:
        records = [
            {k: v / 2 if k.startswith("gflops") else v for k, v in r.items()} for r in records
        ]
    headers, rows = table(records)
    headers = [header.replace("GFLOPs", "GMACs") if macs else header for header in headers]
    body = tables.text(headers, rows, left=["fusion"])
    return f"{body}\n\n{MACS if macs else UNITS}\n{RATIOS}"


def page(records: Sequence[Record], conditions: Mapping[str, str]) -> str:
    """The report as HTML. Needs the extra ``bench``."""
    counted = _plot(_lines(records, "gflops"), "GFLOPs per clip (2 per multiply-add)")
    measured = [
        _plot(series, label)
        for key, label, ends in (
            ("latency_ms_median", "ms per batch, bars: p20 to p80", "latency_ms_p{}"),
            ("peak_memory_mb", "peak memory in MB", ""),
            ("clips_per_second", "clips per second", ""),
        )
        if (series := _lines(records, key, ends))
    ]
    sections = [
        Section("FLOPs", VARIANTS, plots=[counted]),
        *([Section("Measured", plots=measured)] if measured else []),
        _paper(records),
        Section("All records", f"{UNITS} {RATIOS}", table=table(records, official=True)),
    ]
    return render(TITLE, runs.as_lines(conditions), sections)


def _paper(records: Sequence[Record]) -> Section:
    """Figure 3, and the FLOPs of this profile in the same count."""
    said = (
        "Figure 3 of the paper: accuracy (AudioSet mini, mean and standard deviation of 3 runs), "
        f"which a profile does not measure, and cost under these conditions: {figure3.CONDITIONS}."
        "\n\nLast, the cost in this profile, counted like the paper's. The inputs may differ from "
        "the paper's: compare the shapes of the lines."
    )
    accuracy: Series = {
        fusion: [(x, mean, mean - std, mean + std) for x, (mean, std) in values.items()]
        for fusion, values in figure3.MEAN_AVERAGE_PRECISION.items()
    }
    printed: Series = {
        fusion: [(x, y, None, None) for x, y in values.items()]
        for fusion, values in figure3.GFLOPS.items()
    }
    ours: Series = {
        name: [(x, y / 2, None, None) for x, y, *_ in points]
        for name, points in _lines(records, "gflops_official").items()
    }
    drawn = [
        _plot(accuracy, "mAP in %, Figure 3"),
        _plot(printed, "GMACs per clip, Figure 3"),
        _plot(ours, "GMACs per clip, this profile"),
    ]
    return Section("Beside the paper", said, plots=drawn)


def _lines(records: Sequence[Record], key: str, ends: str = "") -> Series:
    """Series name to points, of the records that have a value."""
    series: Series = {}
    for record in records:
        if record[key] is not None:
            low, high = (record[ends.format(end)] if ends else None for end in (20, 80))
            point = (record["fusion_layer"], record[key], low, high)
            series.setdefault(series_name(record), []).append(point)
    return series


def _plot(series: Mapping[str, Sequence[plots.Point]], ylabel: str) -> str:
    return plots.svg(partial(plots.lines, series=series, xlabel="fusion layer", ylabel=ylabel))


def _count(mode: str) -> Callable[..., Any]:
    return forward_flops if mode == "forward" else training_flops
