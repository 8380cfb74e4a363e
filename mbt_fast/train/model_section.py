"""The section ``[model]``: an MBT, or pretrained encoders that are fused."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from mbt_fast.config import MBTConfig, check_modalities, check_sizes
from mbt_fast.errors import InputError
from mbt_fast.models import list_models
from mbt_fast.models.registry import config_for
from mbt_fast.models.towers import LIBRARIES
from mbt_fast.train.fields import Natural, Positive, accept, check_known

_MBT_FIELDS = tuple(f.name for f in fields(MBTConfig) if f.name != "num_classes")
_OWN = ("fuse", "num_classes")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained.

    Args:
        fuse: Modality to pretrained encoder, ``"timm:NAME"`` or ``"hf:NAME"``, or the directory
            that ``save_pretrained`` of Hugging Face wrote in place of the name; empty for an MBT.
        num_classes: Outputs of the classifier; none for as many as there are labels.
        values: Other fields of ``MBTConfig``, completed by its defaults. Or with ``fuse``:
            ``fusion_layer``, ``n_bottlenecks`` and ``input_size``, which mean the same.

    Raises:
        InputError: A value does not fit, or the values contradict one another.
    """

    title: ClassVar[str] = "model"

    fuse: Mapping[str, str] = field(default_factory=dict)
    num_classes: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values and complete them."""
        accept("model.num_classes", Positive | None, self.num_classes)
        values = self._fused_values() if self.fuse else _changed("", self.values)
        object.__setattr__(self, "fuse", dict(self.fuse))
        object.__setattr__(self, "values", values)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "ModelConfig":
        """Make the section from its table, in which ``name`` may stand for a registered model.

        Raises:
            InputError: A key is unknown or missing, or a value does not fit.
        """
        for key in table:
            check_known(f"model.{key}", key, ("name", *_OWN, *_MBT_FIELDS), "model.")
        values = {key: value for key, value in table.items() if key not in ("name", *_OWN)}
        if "name" in table:
            if "fuse" in table:
                raise InputError(
                    f"model.name must be left out with model.fuse, got {table['name']!r}"
                )
            values = _changed(table["name"], values)
        return cls(**{key: table[key] for key in _OWN if key in table}, values=values)

    def to_table(self) -> dict[str, Any]:
        """Every key that has a value; inverse of ``from_table``."""
        own = {"fuse": dict(self.fuse), "num_classes": self.num_classes}
        return {key: value for key, value in own.items() if value} | dict(self.values)

    def mbt(self, num_classes: int) -> MBTConfig:
        """The configuration of the MBT with so many outputs, for a model without ``fuse``."""
        return MBTConfig(**self.values, num_classes=num_classes)

    def _fused_values(self) -> dict[str, Any]:
        _check_sources(self.fuse)
        for key in self.values:
            if key not in ("fusion_layer", "n_bottlenecks", "input_size"):
                raise InputError(f"model.{key} must be left out with model.fuse: encoders have it")
        for key in ("fusion_layer", "input_size"):
            if key not in self.values:
                raise InputError(f"model.{key} must be given with model.fuse, got none")
        sizes = self.values["input_size"]
        try:
            check_sizes({"input_size": sizes}, tuple(self.fuse))
        except (TypeError, ValueError) as error:
            raise InputError(f"model.{error}") from error
        return {
            "fusion_layer": accept("model.fusion_layer", Natural, self.values["fusion_layer"]),
            "n_bottlenecks": accept(
                "model.n_bottlenecks", Natural, self.values.get("n_bottlenecks", 4)
            ),
            "input_size": {m: _size(m, sizes.get(m)) for m in self.fuse},
        }


def _changed(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of a registered model, or of the defaults, with some values changed."""
    accept("model.name", str, name)
    if name:
        check_known(f"model.name {name!r}", name, list_models())
    try:
        base = config_for(name) if name else MBTConfig()
        changed = base.replace(**values).to_dict()
    except (TypeError, ValueError) as error:
        raise InputError(f"model.{error}") from error
    kept = {key: value for key, value in changed.items() if key in _MBT_FIELDS}
    return {key: value for key, value in kept.items() if value is not None}  # TOML has no null


def _check_sources(fuse: Any) -> None:
    """Check what names the encoders."""
    if not isinstance(fuse, Mapping):
        raise InputError(f"model.fuse must be a table from modality to encoder, got {fuse!r}")
    try:
        check_modalities(tuple(fuse))
    except (TypeError, ValueError) as error:
        raise InputError(f"model.fuse: {error}") from error
    for modality, source in fuse.items():
        library, sign, name = str(source).partition(":")
        if library not in LIBRARIES or not sign or not name:
            raise InputError(
                f'model.fuse.{modality} must be "timm:NAME" or "hf:NAME", got {source!r}'
            )


def _size(modality: str, size: Any) -> list[int]:
    if not isinstance(size, (list, tuple)) or len(size) not in (2, 3):
        raise InputError(
            f"model.input_size.{modality} must be [frames, height, width] or [time, mel], "
            f"got {size!r}"
        )
    return [accept(f"model.input_size.{modality}", Positive, extent) for extent in size]
