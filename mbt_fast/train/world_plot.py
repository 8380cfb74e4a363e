"""How a run would scale, as a plot. Needs matplotlib."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mbt_fast.parallel.scaling import ENOUGH, Row
from mbt_fast.profiling import plots
from mbt_fast.train.world import NAMES, WorldPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mbt_fast.profiling.plots import Point


def save(plan: WorldPlan, path: Path) -> None:
    """Draw efficiency over ranks, for the batch of the recipe and for one that grows.

    Args:
        plan: The run.
        path: A PNG file.

    Raises:
        InputError: matplotlib is not installed.
    """
    plots.save_png(partial(_draw, plan), path, size=(8.4, 3.6))


def _draw(plan: WorldPlan, figure: "Figure") -> None:
    found = {
        f"{plan.config.train.batch_size:,} clips": plan.fixed_batch(),
        f"{plan.clips:,} clips a rank": plan.fixed_clips(),
    }
    for index, (batch, rows) in enumerate(found.items(), 1):
        axes = figure.add_subplot(1, len(found), index)
        axes.set_xscale("log", base=2)
        plots.lines(axes, _series(rows), xlabel="ranks", ylabel=f"efficiency, {batch}")
        axes.set_xticks([row.world.size for row in rows][::2])
        axes.set_xlim(0.8, 1.25 * rows[-1].world.size)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylim(bottom=0)
        axes.axhline(ENOUGH, color="0.5", lw=1, ls="--")
    figure.suptitle(f"predicted, {plan.predictor.machine.name}", fontsize=9)


def _series(rows: list[Row]) -> "dict[str, list[Point]]":
    points: dict[str, list[Point]] = {name: [] for name in NAMES.values()}
    for row in rows:
        for way, name in NAMES.items():
            efficiency = row.efficiency[way]
            if efficiency is not None:
                points[name].append((row.world.size, efficiency, None, None))
    return {name: found for name, found in points.items() if found}
