"""The paper's Figure 3 (right), GFLOPs against fusion layer, computed under its own conditions."""

from dataclasses import replace
from typing import NamedTuple

from mbt_fast.flops import forward_flops
from mbt_fast.models import MBTConfig
from mbt_fast.profiling.plan import GIGA
from mbt_fast.report.paper import FIGURE_3_GFLOPS

# 4 s of sound, 8 frames in tubelets of 2 (784 RGB patches), 5 bottleneck tokens.
CONDITIONS = MBTConfig(
    input_size={"rgb": (8, 224, 224), "spectrogram": (400, 128)},
    patch_size={"rgb": (2, 16, 16), "spectrogram": (16, 16)},
    n_bottlenecks=5,
)


class Point(NamedTuple):
    """One point of the figure, in GFLOPs with a multiply-add counted as one."""

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
    for fusion, values in FIGURE_3_GFLOPS.items():
        for layer, paper in values.items():
            config = replace(CONDITIONS, fusion=fusion, fusion_layer=layer)
            ours, efficient = (
                forward_flops(config, cost).total / GIGA / 2 for cost in ("official", "efficient")
            )
            found.append(Point(fusion, layer, ours, paper, efficient))
    return found
