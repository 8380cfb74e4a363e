"""Which fusion layer and how many bottleneck tokens fit into a budget."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from math import inf

from mbt_fast.models import MBTConfig
from mbt_fast.profiling.figure3 import paper_map
from mbt_fast.profiling.sweep import Record, gflops_of

MOST = 2**20  # bottleneck tokens that are tried
NO_EXCHANGE = (
    "\nBut the last layer alone exchanges nothing: nobody reads the bottleneck tokens after it."
)


def best_within(
    records: Sequence[Record], base: MBTConfig, *, gflops: float = inf, milliseconds: float = inf
) -> tuple[Record, int] | None:
    """Choose among the bottleneck models whose FLOPs and median latency are within the budget.

    Cost cannot tell which fusion layer learns best; the paper's Figure 3 (left) can, read at the
    same share of the depth. There the number of tokens matters little: of equal layers the cheapest
    is taken.

    Returns:
        The record, and the largest ``B`` that fits at its layer: by the closed form of the FLOPs,
        or with a budget of milliseconds among the records. ``None`` if nothing fits.
    """

    def fits(record: Record) -> bool:
        latency = record["latency_ms_median"]
        in_time = milliseconds == inf or (latency is not None and latency <= milliseconds)
        return exchanges(record) and record["gflops"] <= gflops and in_time

    fitting = list(filter(fits, records))
    if not fitting:
        return None
    worth = {r["fusion_layer"]: paper_map(r["fusion_layer"], base.num_layers) for r in fitting}
    best = max(fitting, key=lambda record: (worth[record["fusion_layer"]], -record["gflops"]))
    alike = [r["n_bottlenecks"] for r in fitting if r["fusion_layer"] == best["fusion_layer"]]
    within_flops = _largest(best, base, gflops) if milliseconds == inf else 0
    return best, max(*alike, within_flops)


def exchanges(record: Record) -> bool:
    """Whether the model fuses through bottleneck tokens at all."""
    return record["fusion"] == "bottleneck" and record["n_bottlenecks"] > 0


def _largest(record: Record, base: MBTConfig, gflops: float) -> int:
    """The cost grows with ``B`` if any layer is fused; else every ``B`` fits, and 0 is returned."""
    fused = replace(base, fusion="bottleneck", fusion_layer=record["fusion_layer"])
    if fused.fusion_layer == fused.num_layers or len(fused.modalities) == 1:
        return 0

    def cost(count: int) -> float:
        return gflops_of(replace(fused, n_bottlenecks=count), record["mode"])

    return bisect_right(range(MOST), gflops, key=cost) - 1


def sentence(
    records: Sequence[Record], base: MBTConfig, gflops: float | None, milliseconds: float | None
) -> str:
    """The choice in words; ``None`` is no limit."""
    limits = {"GFLOPs": gflops, "ms": milliseconds}
    within = " and ".join(f"{value:g} {unit}" for unit, value in limits.items() if value)
    if not any(map(exchanges, records)):
        return f"Within {within}: nothing to choose from, no model of this profile has bottlenecks."
    found = best_within(records, base, gflops=gflops or inf, milliseconds=milliseconds or inf)
    if found is None:
        return f"Within {within}: no bottleneck model of this profile fits."
    record, largest = found
    layer = record["fusion_layer"]
    warning = NO_EXCHANGE if layer == base.num_layers - 1 else ""
    return (
        f"Within {within}: fusion layer {layer} with B = {record['n_bottlenecks']}, "
        f"{record['gflops']:.5g} GFLOPs; up to B = {largest} fits.\nThe paper's mAP at that share "
        f"of the depth is {paper_map(layer, base.num_layers):.2f} (Figure 3, AudioSet mini)."
        + warning
    )
