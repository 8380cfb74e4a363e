"""The configuration of a training run: a TOML file and what the command line changes in it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mbt_fast.errors import InputError
from mbt_fast.train import toml
from mbt_fast.train.fields import check_known
from mbt_fast.train.loop_section import LoopConfig
from mbt_fast.train.model_section import ModelConfig
from mbt_fast.train.sections import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    InitConfig,
)

RECIPES = Path(__file__).with_name("recipes")
RECIPE, OVERRIDE, DEFAULT, LABELS = "recipe", "override", "default", "labels file"

_PATHS = (
    *("data.train", "data.val", "data.test", "data.labels", "data.cache"),
    *("init.vit", "init.ast", "init.checkpoint"),
)
_RIVALS = (("train.epochs", "train.steps"), ("train.warmup_epochs", "train.warmup_steps"))
_SIZES = ("model.input_size", "model.patch_size")
# A run that differs in these alone gives the same weights and scores, up to rounding. Manifests and
# labels may have moved: what is in them is compared when the run goes on.
_WITHOUT_EFFECT = {
    *("data.train", "data.val", "data.test", "data.labels"),
    *("data.broken_limit", "data.cache", "data.workers", "eval.batch_size"),
    *("train.backend", "train.device", "train.log_every", "train.parallel", "train.recompute"),
    *("checkpoint.best", "checkpoint.every_steps", "checkpoint.keep"),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that a run depends on. Its sections are the tables of the TOML file.

    Args:
        model: What is trained.
        data: Where the clips are, and how they are read.
        augment: What is done to a training clip.
        train: The loss, the optimizer and how long they run.
        eval: When and how the model is scored.
        checkpoint: What is kept.
        init: Where the first weights come from.
        origins: For each dotted key where its value comes from: ``"recipe"``, ``"override"``,
            ``"default"`` or, for ``model.num_classes``, ``"labels file"``.

    Raises:
        InputError: Sections contradict one another.
    """

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: LoopConfig
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    init: InitConfig = field(default_factory=InitConfig)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check what sections must have in common."""
        origins = {key: self.origins.get(key, DEFAULT) for key in self.to_flat()}
        object.__setattr__(self, "origins", origins)
        if self.data.cache:
            _check_fixed_windows(self.augment)
        if self.train.loss == "mean_logits" and self.augment.modality_mixup:
            raise InputError(
                'augment.modality_mixup must be false with train.loss = "mean_logits": modalities '
                "then have labels of their own"
            )
        if not self.model.fuse:
            joint = self.model.values.get("classifier") == "gap"
            if joint and self.augment.modality_mixup:
                raise InputError(
                    'augment.modality_mixup must be false with model.classifier = "gap", which has '
                    "one output for all modalities"
                )
            return
        if self.init.vit or self.init.ast or self.init.towers:
            raise InputError("init.vit, init.ast and init.towers must be left out with model.fuse")
        if self.train.recompute != LoopConfig.recompute:
            raise InputError("train.recompute must be left out with model.fuse")
        if self.data.mask_padding:
            raise InputError("data.mask_padding must be false with model.fuse, got true")

    @classmethod
    def from_toml(
        cls, path: "str | os.PathLike[str]", overrides: Sequence[str] = ()
    ) -> "TrainConfig":
        """Read a recipe, and change some of its values.

        Args:
            path: A TOML file, or the name of a recipe that comes with the package, such as
                ``audioset_mini``. Relative paths in the file start from its directory.
            overrides: ``section.key=value``, the value in TOML or a bare string, such as
                ``train.lr=0.1``, ``train.clip_norm=none`` and ``data.train=train.csv``. Relative
                paths start from the working directory. ``train.steps`` replaces the recipe's
                ``train.epochs`` and the reverse, and so it is with the two keys of warm-up.

        Raises:
            InputError: The file cannot be read or is not TOML; a key is unknown, missing or has a
                value that does not fit. The message names it.
        """
        source = _recipe(path)
        recipe = _with_paths(toml.read(source), source.parent)
        given = _with_paths(toml.parse_overrides(overrides), Path.cwd())
        recipe = {key: value for key, value in recipe.items() if not _replaced(key, given)}
        origins = dict.fromkeys(recipe, RECIPE) | dict.fromkeys(given, OVERRIDE)
        try:
            return cls._from_tables(toml.nest(recipe | given), origins)
        except InputError as error:
            if str(error).startswith(tuple(given)):
                raise
            raise InputError(f"{source}: {error}") from error

    @classmethod
    def _from_tables(cls, tables: dict[str, Any], origins: dict[str, str]) -> "TrainConfig":
        known = {f.name: f.type for f in fields(cls) if f.name != "origins"}
        for key, table in tables.items():
            check_known(f"[{key}]" if isinstance(table, dict) else key, key, known)
            if not isinstance(table, dict):
                raise InputError(f"{key} must be a table, got {table!r}")
        sections = {
            name: section.from_table(tables.get(name, {}))  # type: ignore[union-attr]
            for name, section in known.items()
        }
        if "model.name" in origins:  # it stands for the fields that are not given
            named = {f"model.{key}" for key in toml.flatten(sections["model"].to_table())}
            origins = dict.fromkeys(named, origins["model.name"]) | origins
        return cls(**sections, origins=origins)

    def to_toml(self) -> str:
        """The resolved configuration; ``from_toml`` reads the same from it."""
        return toml.dumps(self._tables())

    def to_flat(self) -> dict[str, Any]:
        """Every dotted key that has a value, in the order of the sections."""
        return toml.flatten(self._tables())

    def differences(self, other: "TrainConfig") -> list[str]:
        """Dotted keys that differ and change a result, sorted.

        Without effect are the device and the backend, which change rounding only, the number of
        workers, where manifests and labels lie, and what is logged or kept and how often.
        """
        mine, theirs = self.to_flat(), other.to_flat()
        keys = (mine.keys() | theirs.keys()) - _WITHOUT_EFFECT
        return sorted(key for key in keys if mine.get(key) != theirs.get(key))

    def with_num_classes(self, num_classes: int) -> "TrainConfig":
        """The configuration with the number of labels filled in.

        Raises:
            InputError: ``model.num_classes`` is given, and is another.
        """
        given = self.model.num_classes
        if given == num_classes:
            return self
        if given is not None:
            raise InputError(
                f"model.num_classes must be the number of labels, {num_classes}, got {given}"
            )
        origins = {**self.origins, "model.num_classes": LABELS}
        return replace(self, model=replace(self.model, num_classes=num_classes), origins=origins)

    def check_ready(self) -> None:
        """Refuse a configuration that names no training clips, as a recipe alone.

        Raises:
            InputError: ``data.train`` is empty.
        """
        if not self.data.train:
            raise InputError("data.train must name a manifest, such as data.train=train.csv")

    def _tables(self) -> dict[str, Any]:
        names = [f.name for f in fields(self) if f.name != "origins"]
        return {name: getattr(self, name).to_table() for name in names}


def _check_fixed_windows(augment: AugmentConfig) -> None:
    """Refuse to keep windows that are drawn anew each time."""
    given = {"window": augment.window, "crop": augment.crop, "scale": list(augment.scale)}
    wanted = {"window": "centre", "crop": "centre", "scale": [1.0, 1.0]}
    for name, value in wanted.items():
        if given[name] != value:
            raise InputError(f"augment.{name} must be {value} with data.cache, got {given[name]}")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def _recipe(path: "str | os.PathLike[str]") -> Path:
    """The file that is meant: a name without folder and suffix is a recipe of the package."""
    path = Path(path)
    if path.suffix or len(path.parts) > 1:
        return path
    check_known(f"recipe {path.name!r}", path.name, recipe_names())
    return RECIPES / f"{path.name}.toml"


def _with_paths(flat: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths made absolute, from this folder; those that are empty mean none."""
    changed = dict(flat)
    for key, value in flat.items():
        if not isinstance(value, str) or not value:
            continue
        if key in _PATHS or key.startswith("init.towers."):
            changed[key] = os.path.abspath(folder / Path(value).expanduser())
        elif key.startswith("model.fuse.") and value.startswith("hf:"):
            local = folder / Path(value.removeprefix("hf:")).expanduser()
            if local.is_dir():
                changed[key] = f"hf:{os.path.abspath(local)}"
    return changed


def _replaced(key: str, given: dict[str, Any]) -> bool:
    """Whether an override takes the place of this key of the recipe without being its value.

    It does so for the other key of a pair, for entries of a table that becomes a value, and for
    sizes of a modality that the model then no longer has.
    """
    if any(key in pair and set(pair) - {key} <= given.keys() for pair in _RIVALS):
        return True
    if any(key.startswith(f"{other}.") for other in given):
        return True
    table, _, modality = key.rpartition(".")
    return table in _SIZES and modality not in given.get("model.modalities", [modality])
