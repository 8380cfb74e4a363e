"""Which models a profile compares, and what each one costs in closed form."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mbt_fast.flops import forward_flops, training_flops
from mbt_fast.models import MBTConfig

# Names on the command line: fusion, share_encoder.
FUSIONS = {
    "bottleneck": ("bottleneck", False),
    "vanilla": ("vanilla", False),
    "vanilla-shared": ("vanilla", True),
}
MODES = ("forward", "train")
GIGA = 1e9

Record = dict[str, Any]


def variants(
    base: MBTConfig,
    fusion_layers: Iterable[int],
    fusions: Iterable[str],
    n_bottlenecks: Iterable[int],
) -> list[MBTConfig]:
    """Every fusion at every fusion layer; bottleneck fusion also for every number of tokens."""
    n_bottlenecks = list(n_bottlenecks)
    configs = []
    for name in fusions:
        fusion, share = FUSIONS[name]
        for layer in fusion_layers:
            for count in n_bottlenecks if fusion == "bottleneck" else n_bottlenecks[:1]:
                config = replace(
                    base,
                    fusion=fusion,
                    share_encoder=share,
                    fusion_layer=layer,
                    n_bottlenecks=count,
                )
                configs.append(config)
    return configs


def computed_as(config: MBTConfig) -> MBTConfig:
    """The config that stands for all that compute the same: with late fusion nothing is fused."""
    if config.fusion_layer < config.num_layers:
        return config
    return replace(config, fusion="bottleneck", n_bottlenecks=0)


def record_of(
    config: MBTConfig, *, mode: str, batch_size: int, device: str, dtype: str, backend: str
) -> Record:
    """The record of one model before it has been measured: settings and FLOPs per clip."""
    count = forward_flops if mode == "forward" else training_flops
    cost = count(config)
    return {
        "fusion": config.fusion,
        "share_encoder": config.share_encoder,
        "fusion_layer": config.fusion_layer,
        "n_bottlenecks": config.n_bottlenecks,
        "batch_size": batch_size,
        "device": device,
        "dtype": dtype,
        "backend": backend,
        "mode": mode,
        "gflops": cost.total / GIGA,
        "gflops_attention": cost.attention / GIGA,
        "gflops_linear": cost.linear / GIGA,
        "gflops_stem_head": cost.stem_head / GIGA,
        "gflops_official": count(config, "official").total / GIGA,
        "latency_ms_median": None,
        "latency_ms_p20": None,
        "latency_ms_p80": None,
        "peak_memory_mb": None,
        "clips_per_second": None,
        "rounds": 0,
    }
