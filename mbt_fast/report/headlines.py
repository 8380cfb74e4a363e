"""What a profile says, in sentences that hold for its records and no others."""

from collections.abc import Iterable, Sequence

from mbt_fast.report.paper import FIGURE_3_MAP
from mbt_fast.report.records import (
    Record,
    by_series,
    by_setting,
    has_several_backends,
    is_pairwise,
    late_fusion_layer,
    of_one_mode,
    series_name,
    sort_key,
)
from mbt_fast.report.table import amount, milliseconds

PAPER_BEST = max(FIGURE_3_MAP["bottleneck"], key=lambda layer: FIGURE_3_MAP["bottleneck"][layer])


def headlines(records: Sequence[Record]) -> list[str]:
    """The main findings: FLOPs, FLOPs saved, the official code's cost, then time and memory.

    Returns:
        Plain text sentences, not escaped. What the records do not support is not said.
    """
    flops = of_one_mode(records)
    sentences = [_cost(flops), _saving(flops), _official(flops)]
    with_backend = has_several_backends(records)
    for setting, group in by_setting(records).items():
        for layer in _compared_layers(group):
            sentences.append(_measured(setting, *_contenders(group, layer), with_backend))
    return [sentence for sentence in sentences if sentence]


def _join(phrases: Iterable[str]) -> str:
    *head, last = phrases
    return f"{', '.join(head)} and {last}" if head else last


def _compared_layers(records: Sequence[Record]) -> list[int]:
    """Fused layers that hold a bottleneck and a pairwise model: the first and the paper's best."""
    common = {record["fusion_layer"] for record in records if is_pairwise(record)}
    common &= {record["fusion_layer"] for record in records if record["fusion"] == "bottleneck"}
    common -= {late_fusion_layer(records)}
    return sorted({min(common), *({PAPER_BEST} & common)}) if common else []


def _contenders(records: Sequence[Record], layer: int) -> tuple[Record, Record]:
    """The first bottleneck model of a layer and its baseline, on the same backend if there."""
    here = sorted((r for r in records if r["fusion_layer"] == layer), key=sort_key)
    bottleneck = next(r for r in here if r["fusion"] == "bottleneck")
    pairwise = [r for r in here if is_pairwise(r)]
    same_backend = [r for r in pairwise if r["backend"] == bottleneck["backend"]]
    return bottleneck, (same_backend or pairwise)[0]


def _cost(records: Sequence[Record]) -> str:
    layer = min(record["fusion_layer"] for record in records)
    costs = {
        name: layers[layer]["gflops"]
        for name, layers in by_series(records).items()
        if layer in layers
    }
    late = late_fusion_layer(records)
    if late is None or late == layer:
        listing = _join(f"{amount(cost)} GFLOPs for {name}" for name, cost in costs.items())
        return f"At fusion layer {layer}, one clip costs {listing}."
    base = next(record["gflops"] for record in records if record["fusion_layer"] == late)
    listing = _join(f"by {cost / base:.3f} for {name}" for name, cost in costs.items())
    return (
        f"Late fusion costs {amount(base)} GFLOPs per clip. Fusing from layer {layer} on "
        f"multiplies that {listing}."
    )


def _saving(records: Sequence[Record]) -> str:
    phrases = []
    for layer in _compared_layers(records):
        bottleneck, pairwise = _contenders(records, layer)
        saved = 100 * (1 - bottleneck["gflops"] / pairwise["gflops"])
        amount = f"{abs(saved):.1f} % {'fewer' if saved >= 0 else 'more'} FLOPs"
        phrases.append(f"{amount} at fusion layer {layer}")
    if not phrases:
        return ""
    return (
        f"Against an efficient {series_name(pairwise)}, {series_name(bottleneck)} needs "
        f"{_join(phrases)}."
    )


def _official(records: Sequence[Record]) -> str:
    pairwise = [r for r in records if is_pairwise(r) and r.get("gflops_official") is not None]
    if not pairwise:
        return ""
    record = min(pairwise, key=lambda record: record["fusion_layer"])
    ratio = record["gflops_official"] / record["gflops"]
    if ratio <= 1:
        return ""
    return (
        f"The official code spends {ratio:.2f} times the necessary FLOPs on {series_name(record)} "
        f"at fusion layer {record['fusion_layer']}: it computes rows that it throws away. "
        "No ratio to vanilla in this report counts them."
    )


def _measured(setting: str, record: Record, base: Record, with_backend: bool) -> str:
    time, base_time = record.get("latency_ms_median"), base.get("latency_ms_median")
    if time is None or not base_time:
        return ""
    name, other = (series_name(r, with_backend=with_backend) for r in (record, base))
    sentence = (
        f"Measured ({setting}) at fusion layer {record['fusion_layer']}: {name} takes "
        f"{milliseconds(time)} ms, {time / base_time:.2f} times the {milliseconds(base_time)} ms "
        f"of {other}"
    )
    memory, base_memory = record.get("peak_memory_mb"), base.get("peak_memory_mb")
    if memory is not None and base_memory:
        sentence += f", at {memory / base_memory:.2f} times its peak memory"
    if _overlap(record, base):
        return f"{sentence}. Their p20-p80 intervals overlap: the difference in time may be noise."
    return f"{sentence}."


def _overlap(first: Record, second: Record) -> bool:
    low = max(_quantile(first, "p20"), _quantile(second, "p20"))
    return low <= min(_quantile(first, "p80"), _quantile(second, "p80"))


def _quantile(record: Record, name: str) -> float:
    value = record.get(f"latency_ms_{name}")
    return float(record["latency_ms_median"] if value is None else value)
