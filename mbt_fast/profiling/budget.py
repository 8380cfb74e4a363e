"""Which fusion layer and how many bottleneck tokens to take within a budget."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from mbt_fast.models import MBTConfig
from mbt_fast.profiling.plan import Record, record_of
from mbt_fast.report.paper import FIGURE_3_MAP, LATE_FUSION_LAYER


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

    FLOPs and milliseconds cannot tell which fusion layer learns best; the paper's Figure 3 (left,
    mAP on AudioSet-mini) can, read at the same share of the depth. The number of tokens matters
    little, B from 4 to 1024 lie within 0.5 mAP in the paper: of equal layers the cheapest wins.

    Args:
        records: Records of a profile.
        base: The model profiled; gives the depth.
        gflops: Budget per clip.
        milliseconds: Budget of the median latency per batch.

    Returns:
        The choice, or ``None`` if nothing fits. ``largest_n_bottlenecks`` is the most that keeps
        the FLOPs budget, by the closed form, or else the most among the records that fit.
    """
    fitting = [
        record for record in records if exchanges(record) and _fits(record, gflops, milliseconds)
    ]
    if not fitting:
        return None
    best = max(fitting, key=lambda r: (paper_map(r["fusion_layer"], base), -r["gflops"]))
    alike = [r["n_bottlenecks"] for r in fitting if r["fusion_layer"] == best["fusion_layer"]]
    largest = max(alike)
    if gflops is not None and milliseconds is None:
        largest = _largest_n_bottlenecks(best, base, gflops)
    return Choice(best, paper_map(best["fusion_layer"], base), largest)


def exchanges(record: Record) -> bool:
    """Whether the model fuses through bottleneck tokens at all."""
    return record["fusion"] == "bottleneck" and record["n_bottlenecks"] > 0


def paper_map(fusion_layer: int, base: MBTConfig) -> float:
    """Figure 3 (left) at the same share of the depth, linear between the paper's points."""
    x = fusion_layer / base.num_layers * LATE_FUSION_LAYER
    points = sorted(
        (layer, estimate.mean) for layer, estimate in FIGURE_3_MAP["bottleneck"].items()
    )
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    raise ValueError(f"fusion_layer must be at most {base.num_layers}, got {fusion_layer}")


def _fits(record: Record, gflops: float | None, milliseconds: float | None) -> bool:
    if gflops is not None and record["gflops"] > gflops:
        return False
    if milliseconds is None:
        return True
    latency = record["latency_ms_median"]
    return latency is not None and latency <= milliseconds


def _largest_n_bottlenecks(record: Record, base: MBTConfig, gflops: float) -> int:
    """By bisection: cost grows with ``B`` as long as any layer is fused."""
    fused = replace(base, fusion="bottleneck", fusion_layer=record["fusion_layer"])
    if fused.fusion_layer == fused.num_layers or len(fused.modalities) == 1:
        return record["n_bottlenecks"]

    def cost(count: int) -> float:
        config = replace(fused, n_bottlenecks=count)
        settings = {
            key: record[key] for key in ("mode", "batch_size", "device", "dtype", "backend")
        }
        return record_of(config, **settings)["gflops"]

    low, high = record["n_bottlenecks"], 2 * record["n_bottlenecks"] + 1
    while cost(high) <= gflops:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= gflops else (low, middle)
    return low
