"""Which fusion layer and how many bottleneck tokens fit into a budget."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from mbt_fast.models import MBTConfig
from mbt_fast.profiling.figure3 import paper_map
from mbt_fast.profiling.sweep import Record, gflops_of

MOST = 2**20  # bottleneck tokens that are tried


class Choice(NamedTuple):
    """The record that fits best, the paper's mAP at that fusion layer, and the largest ``B``."""

    record: Record
    paper_map: float
    largest_n_bottlenecks: int


def best_within(
    records: Sequence[Record],
    base: MBTConfig,
    *,
    gflops: float | None = None,
    milliseconds: float | None = None,
) -> Choice | None:
    """Choose among the bottleneck models that cost no more than the budget.

    Cost cannot tell which fusion layer learns best; the paper's Figure 3 (left) can, read at the
    same share of the depth. There the number of tokens matters little: of equal layers the cheapest
    is taken.

    Args:
        records: Records of a profile.
        base: The model that was profiled.
        gflops: Budget per clip.
        milliseconds: Budget of the median latency per batch.

    Returns:
        The choice, or ``None`` if nothing fits. ``largest_n_bottlenecks`` is the most that fits the
        FLOPs in closed form; with a budget of milliseconds, the most among the records that fit.
    """

    def fits(record: Record) -> bool:
        latency = record["latency_ms_median"]
        in_time = milliseconds is None or (latency is not None and latency <= milliseconds)
        return in_time and (gflops is None or record["gflops"] <= gflops)

    def value(record: Record) -> float:
        return paper_map(record["fusion_layer"], base.num_layers)

    fitting = list(filter(fits, filter(exchanges, records)))
    if not fitting:
        return None
    best = max(fitting, key=lambda record: (value(record), -record["gflops"]))
    alike = [r["n_bottlenecks"] for r in fitting if r["fusion_layer"] == best["fusion_layer"]]
    largest = max(alike)
    if gflops is not None and milliseconds is None:
        largest = _largest_n_bottlenecks(best, base, gflops)
    return Choice(best, value(best), largest)


def exchanges(record: Record) -> bool:
    """Whether the model fuses through bottleneck tokens at all."""
    return record["fusion"] == "bottleneck" and record["n_bottlenecks"] > 0


def _largest_n_bottlenecks(record: Record, base: MBTConfig, gflops: float) -> int:
    """By bisection: cost grows with ``B`` if any layer is fused."""
    fused = replace(base, fusion="bottleneck", fusion_layer=record["fusion_layer"])
    if fused.fusion_layer == fused.num_layers or len(fused.modalities) == 1:
        return record["n_bottlenecks"]

    def cost(count: int) -> float:
        return gflops_of(replace(fused, n_bottlenecks=count), record["mode"])

    return bisect_right(range(MOST), gflops, key=cost) - 1


def sentence(
    gflops: float | None, milliseconds: float | None, records: Sequence[Record], base: MBTConfig
) -> str:
    """The choice in words."""
    limits = ((gflops, "GFLOPs"), (milliseconds, "ms"))
    within = " and ".join(f"{value:g} {unit}" for value, unit in limits if value is not None)
    if not any(map(exchanges, records)):
        return f"Within {within}: nothing to choose from, no model of this profile has bottlenecks."
    found = best_within(records, base, gflops=gflops, milliseconds=milliseconds)
    if found is None:
        return f"Within {within}: no bottleneck model of this profile fits."
    record = found.record
    return (
        f"Within {within}: fusion layer {record['fusion_layer']} with B = "
        f"{record['n_bottlenecks']}, {record['gflops']:.5g} GFLOPs; up to B = "
        f"{found.largest_n_bottlenecks} fits.\nThe paper's mAP at that share of the depth is "
        f"{found.paper_map:.2f} (Figure 3, AudioSet mini)."
    )
