"""Figure 3 of the MBT paper as data.

Source: Nagrani et al., "Attention Bottlenecks for Multimodal Fusion", NeurIPS 2021,
arXiv 2107.00135, Figure 3. The paper prints no table of it: the values are recovered from the
vector graphics, +-0.01.

Both panels show MBT-B on AudioSet (mini training set, clips of 4 s) against the fusion layer.
"""

from typing import NamedTuple

LATE_FUSION_LAYER = 12  # MBT-B has 12 layers


class Estimate(NamedTuple):
    """Mean and standard deviation over the three runs of the paper."""

    mean: float
    std: float


FIGURE_3_MAP: dict[str, dict[int, Estimate]] = {
    "bottleneck": {
        0: Estimate(40.76, 0.38),
        2: Estimate(40.56, 0.25),
        4: Estimate(40.96, 0.29),
        6: Estimate(41.52, 0.31),
        8: Estimate(42.44, 0.17),
        10: Estimate(41.82, 0.13),
        12: Estimate(40.60, 0.23),
    },
    "vanilla": {
        0: Estimate(38.49, 0.48),
        2: Estimate(38.85, 0.30),
        4: Estimate(39.01, 0.53),
        6: Estimate(40.45, 0.37),
        8: Estimate(41.16, 0.38),
        10: Estimate(41.87, 0.32),
        12: Estimate(40.57, 0.23),
    },
}
"""Left panel: mean average precision in percent, by fusion and fusion layer."""

FIGURE_3_GFLOPS: dict[str, dict[int, float]] = {
    "bottleneck": {0: 98.39, 2: 98.22, 4: 98.05, 6: 97.88, 8: 97.70, 10: 97.53, 12: 97.36},
    "vanilla": {0: 205.48, 2: 187.46, 4: 169.44, 6: 151.42, 8: 133.40, 10: 115.38, 12: 97.36},
}
"""Right panel: GFLOPs of one clip, by fusion and fusion layer, a multiply-add counted as one."""

FIGURE_3_CONDITIONS: tuple[str, ...] = (
    "784 RGB patches: 8 frames in tubelets of 2, not the 1568 patches of the paper's text",
    "a multiply-add counts as one FLOP; everywhere else on this page it counts as two",
    "5 bottleneck tokens, not 4: with a token head the official code adds one",
    "vanilla fusion as the official code computes it: each modality's whole block runs over all "
    "tokens, and the other modality's rows are thrown away",
)
"""What the right panel was measured with. Its values are reproduced only with all four."""


class Figure3(NamedTuple):
    """Both panels, as ``render_html`` takes them."""

    mean_average_precision: dict[str, dict[int, Estimate]]
    gflops: dict[str, dict[int, float]]


FIGURE_3 = Figure3(FIGURE_3_MAP, FIGURE_3_GFLOPS)
