"""Choose the fusion layer: the earliest whose FLOPs are within a budget, for both kinds of fusion.

python examples/choose_fusion_layer.py --model mbt_base --budget 450

``mbt-fast profile`` measures latency and memory too.
"""

import argparse

import torch

from mbt_fast import MBTConfig, create_model
from mbt_fast.flops import forward_flops

GIGA = 10**9


def gflops(config: MBTConfig, fusion: str, fusion_layer: int) -> float:
    """GFLOPs of one clip, two for each multiply-add."""
    changes = {"fusion": fusion, "fusion_layer": fusion_layer}
    return forward_flops(MBTConfig.from_dict({**config.to_dict(), **changes})).total / GIGA


def earliest(costs: list[float], budget: float) -> int | None:
    """The first layer whose cost is within the budget."""
    return next((layer for layer, cost in enumerate(costs) if cost <= budget), None)


def main(arguments: list[str] | None = None) -> dict[str, int | None]:
    """Print a table; return the chosen layer for each kind of fusion."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mbt_base")
    parser.add_argument("--budget", type=float, default=450.0, help="GFLOPs of one clip")
    options = parser.parse_args(arguments)
    with torch.device("meta"):  # no weights are needed to count
        config = create_model(options.model).config
    layers = range(config.num_layers + 1)
    costs = {kind: [gflops(config, kind, n) for n in layers] for kind in ("bottleneck", "vanilla")}
    print(f"{'fusion layer':>12}" + "".join(f"{kind:>14}" for kind in costs))
    for layer in layers:
        print(f"{layer:>12}" + "".join(f"{costs[kind][layer]:>14.4g}" for kind in costs))
    chosen = {kind: earliest(values, options.budget) for kind, values in costs.items()}
    for kind, first in chosen.items():
        print(f"{kind}: " + ("none fits" if first is None else f"fuse from layer {first} on"))
    return chosen


if __name__ == "__main__":
    main()
