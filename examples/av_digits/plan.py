"""The runs of the experiment: what is compared, and from which towers it starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RECIPES = Path(__file__).with_name("recipes")
LATE = 5  # layers: fusion after the last one
SEEDS = (0, 1, 2)

# What differs from recipes/digit.toml. "shared" has one encoder for both modalities, and as it is
# for vanilla fusion no bottleneck tokens.
TOWERS = {
    "tower-rgb": ('model.modalities=["rgb"]',),
    "tower-spectrogram": ('model.modalities=["spectrogram"]',),
    "tower-shared": ("model.fusion=vanilla", "model.share_encoder=true"),
}
# What differs from recipes/sum.toml, which fuses from layer 2 on by 4 bottleneck tokens.
MODELS = {
    "bottleneck-2": (),
    "late": (f"model.fusion_layer={LATE}",),
    "vanilla-2": ("model.fusion=vanilla",),
    "late-mean": (f"model.fusion_layer={LATE}", "train.loss=mean_logits"),
    "rgb": ('model.modalities=["rgb"]', f"model.fusion_layer={LATE}"),
    "spectrogram": ('model.modalities=["spectrogram"]', f"model.fusion_layer={LATE}"),
    "bottleneck-0": ("model.fusion_layer=0",),
    "vanilla-0": ("model.fusion=vanilla", "model.fusion_layer=0"),
    "bottleneck-3": ("model.fusion_layer=3",),
    "vanilla-3": ("model.fusion=vanilla", "model.fusion_layer=3"),
    "vanilla-shared-2": ("model.fusion=vanilla", "model.share_encoder=true"),
    "bottleneck-2-b1": ("model.n_bottlenecks=1",),
    "bottleneck-2-b16": ("model.n_bottlenecks=16",),
    "bottleneck-2-one-head": ("train.task=single",),  # the sum's
}
SHORT = ("bottleneck-2", "late")
# What differs from recipes/where.toml, which fuses from layer 1 on.
WHERE = {
    "where-bottleneck-1": (),
    "where-vanilla-1": ("model.fusion=vanilla",),
    "where-late": (f"model.fusion_layer={LATE}",),
}


@dataclass(frozen=True)
class Run:
    """One run of ``mbt-fast train``.

    Args:
        name: Of the configuration.
        task: ``"digit"``, ``"sum"``, ``"place"`` or ``"where"``: the recipe and the clips.
        seed: Of the run.
        overrides: What differs from the recipe.
    """

    name: str
    task: str
    seed: int
    overrides: tuple[str, ...]

    def folder(self, runs: Path) -> Path:
        """Where the run is."""
        return runs / f"seed-{self.seed}" / self.name

    def arguments(self, clips: Path, runs: Path, more: Sequence[str] = ()) -> list[str]:
        """Of ``mbt-fast``, but for the folder of the run.

        Args:
            clips: What ``data.py`` wrote.
            runs: The folder of all runs.
            more: Further overrides, which win.
        """
        classes = "digit" if "train.task=single" in self.overrides else self.task
        data = (
            *(f"data.{split}={clips / self.task / split}.csv" for split in ("train", "val")),
            *(f"data.labels={clips / classes / 'labels.txt'}", f"data.cache={clips / 'cache'}"),
        )
        return [
            *("train", str(RECIPES / f"{self.task}.toml"), f"train.seed={self.seed}"),
            *(*data, *self.overrides, *self._towers(runs), *more),
        ]

    def _towers(self, runs: Path) -> tuple[str, ...]:
        """Where the weights come from: the towers of the same seed, and of the tasks before."""
        if self.task in ("digit", "place"):
            return ()
        towers = runs / f"seed-{self.seed}"
        if "model.share_encoder=true" in self.overrides:
            return (f"init.checkpoint={towers / 'tower-shared'}",)
        modalities = [self.name] if self.name in ("rgb", "spectrogram") else ["rgb", "spectrogram"]
        names = {m: f"tower-{m}" for m in modalities}
        if self.task == "where":
            names["rgb"] = "tower-place"
        return tuple(f"init.towers.{m}={towers / name}" for m, name in names.items())


def stages(models: tuple[str, ...], seeds: tuple[int, ...]) -> list[list[Run]]:
    """The towers, and then what starts from them; the runs of a stage do not need one another."""
    shared = "vanilla-shared-2" in models
    towers = [name for name in TOWERS if shared or name != "tower-shared"]
    return [
        [Run(name, "digit", seed, TOWERS[name]) for seed in seeds for name in towers],
        [Run(name, "sum", seed, MODELS[name]) for seed in seeds for name in models],
    ]


def where_stages(seeds: tuple[int, ...]) -> list[list[Run]]:
    """The same for *where*: its picture's tower learns *place*, its sound's is that of *sum*."""
    sound = "tower-spectrogram"
    return [
        [Run("tower-place", "place", seed, ()) for seed in seeds]
        + [Run(sound, "digit", seed, TOWERS[sound]) for seed in seeds],
        [Run(name, "where", seed, changes) for seed in seeds for name, changes in WHERE.items()],
    ]
