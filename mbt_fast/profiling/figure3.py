"""Figure 3 of the MBT paper as data, and the same GFLOPs computed under the paper's conditions.

Source: Nagrani et al., "Attention Bottlenecks for Multimodal Fusion", NeurIPS 2021,
arXiv 2107.00135, Figure 3: MBT-B on AudioSet (mini training set, clips of 4 s) against the fusion
layer. The paper prints no table of it: the values are read from the vector graphics, +-0.01.
"""

from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from mbt_fast.flops import forward_flops
from mbt_fast.models import MBTConfig

LATE_FUSION_LAYER = 12  # MBT-B has 12 layers

# Left panel: mean average precision in percent, mean and standard deviation of three runs, by
# fusion and fusion layer.
MEAN_AVERAGE_PRECISION: dict[str, dict[int, tuple[float, float]]] = {
    "bottleneck": {
        0: (40.76, 0.38),
        2: (40.56, 0.25),
        4: (40.96, 0.29),
        6: (41.52, 0.31),
        8: (42.44, 0.17),
        10: (41.82, 0.13),
        12: (40.60, 0.23),
    },
    "vanilla": {
        0: (38.49, 0.48),
        2: (38.85, 0.30),
        4: (39.01, 0.53),
        6: (40.45, 0.37),
        8: (41.16, 0.38),
        10: (41.87, 0.32),
        12: (40.57, 0.23),
    },
}

# Right panel: GFLOPs of one clip, a multiply-add counted as one, by fusion and fusion layer.
GFLOPS: dict[str, dict[int, float]] = {
    "bottleneck": {0: 98.39, 2: 98.22, 4: 98.05, 6: 97.88, 8: 97.70, 10: 97.53, 12: 97.36},
    "vanilla": {0: 205.48, 2: 187.46, 4: 169.44, 6: 151.42, 8: 133.40, 10: 115.38, 12: 97.36},
}

# What the right panel was measured with. Its values are reproduced only with all of these.
CONDITIONS = (
    "784 RGB patches: 8 frames in tubelets of 2, not the 1568 patches of the paper's text; "
    "a multiply-add counts as one FLOP; "
    "5 bottleneck tokens, not 4: with a token head the official code adds one; "
    "vanilla fusion as the official code computes it: each modality's whole block runs over all "
    "tokens, and the other modality's rows are discarded"
)
CONFIG = MBTConfig(
    input_size={"rgb": (8, 224, 224), "spectrogram": (400, 128)},
    patch_size={"rgb": (2, 16, 16), "spectrogram": (16, 16)},
    n_bottlenecks=5,
)


class Point(NamedTuple):
    """One point of the right panel, in GFLOPs with a multiply-add counted as one."""

    fusion: str
    fusion_layer: int
    ours: float
    paper: float
    efficient: float

    @property
    def element_wise_share(self) -> float:
        """What the paper counts beyond matrix products, relative to ours."""
        return self.paper / self.ours - 1


def points() -> list[Point]:
    """Ours and the paper's: vanilla as the official code computes it, and what Eq. 5-6 ask for."""
    found = []
    for fusion, values in GFLOPS.items():
        for layer, paper in values.items():
            config = replace(CONFIG, fusion=fusion, fusion_layer=layer)
            ours, efficient = (
                forward_flops(config, cost).total / 2e9 for cost in ("official", "efficient")
            )
            found.append(Point(fusion, layer, ours, paper, efficient))
    return found


def paper_map(fusion_layer: int, num_layers: int) -> float:
    """The paper's mAP with bottlenecks at the same share of the depth, linear between its points.

    Raises:
        ValueError: There is no such layer.
    """
    x = fusion_layer / num_layers * LATE_FUSION_LAYER
    values = sorted(MEAN_AVERAGE_PRECISION["bottleneck"].items())
    for (x0, (y0, _)), (x1, (y1, _)) in pairwise(values):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    raise ValueError(f"fusion_layer must be 0 to {num_layers}, got {fusion_layer}")


def table() -> str:
    """The right panel beside ours, as text. Needs the package ``tabulate``."""
    from tabulate import tabulate

    rows = [
        (p.fusion, p.fusion_layer, p.ours, p.paper, 100 * p.element_wise_share, p.efficient)
        for p in points()
    ]
    headers = ["fusion", "L_f", "ours", "paper", "element-wise %", "efficient"]
    return (
        "Figure 3 (right) of arXiv 2107.00135: GFLOPs, a multiply-add counted as one.\n"
        "Ours counts matrix products only, and vanilla fusion as the official code computes it;\n"
        "'efficient' is what Eq. 5-6 ask for. Conditions: "
        f"{CONDITIONS}.\n\n{tabulate(rows, headers=headers, floatfmt='.2f')}"
    )
