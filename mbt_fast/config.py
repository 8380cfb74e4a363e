"""The configuration of an MBT: one flat, frozen record of all that the weights depend on."""

import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from numbers import Real
from typing import Any, NoReturn

from torch import nn

from mbt_fast.scenic_config import CLASSIFIERS, config_from_scenic, sampled_frames

FUSIONS = ("bottleneck", "vanilla")
MAX_HEAD_DIM = 128  # the widest head of the attention op, repeated: config imports no op

_PER_MODALITY = ("input_size", "patch_size")
_MAY_BE_ZERO = ("fusion_layer", "n_bottlenecks", "n_sampled_frames")
_KINDS = {int: "an integer", bool: "a bool", float: "a number"}
# Names of a FusionLayer.
_RESERVED = (
    "shared",
    "block_of",
    "chosen_backend",
    "reset_parameters",
    "set_backend",
    "set_execution",
)


class Sizes(dict[str, tuple[int, ...]]):
    """Sizes by modality; cannot be changed, and so can be hashed."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("sizes of a configuration cannot be changed; use MBTConfig.replace")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        """Independent of the order, as equality is."""
        return hash(frozenset(self.items()))

    def __reduce__(self) -> Any:
        """Pickle and copy by building anew."""
        return Sizes, (dict(self),)


def _rgb_and_spectrogram(rgb: tuple[int, ...], spectrogram: tuple[int, ...]) -> Any:
    return field(default_factory=lambda: {"rgb": rgb, "spectrogram": spectrogram})


@dataclass(frozen=True)
class MBTConfig:
    """What an MBT is. The defaults are MBT-B of the paper on eight seconds of AudioSet.

    A modality with three sizes is video, ``(frames, height, width)``, cut into tubelets
    ``(t, h, w)``; one with two sizes is a spectrogram, ``(time, mel)``, cut into patches
    ``(time, mel)``. Both have three input channels; a spectrogram's are three copies of itself,
    as in the official code.

    Args:
        modalities: Names of the streams, each a Python identifier.
        input_size: Size of one input per modality.
        patch_size: Size of one patch per modality; must divide the input size.
        hidden_size: Channels ``C`` of a token.
        num_layers: Transformer blocks.
        num_heads: Attention heads; must divide ``hidden_size``.
        mlp_dim: Hidden channels of the MLP.
        num_classes: Outputs of the classifier.
        fusion: ``"bottleneck"`` (Eq. 7-9 of the paper) or ``"vanilla"`` (Eq. 4-6).
        fusion_layer: First fused layer, from 0 (early fusion); ``num_layers`` is late fusion. With
            bottlenecks ``num_layers - 1`` exchanges nothing, unless there is an ``update_order``:
            nobody reads what the last layer writes.
        n_bottlenecks: Exact number of bottleneck tokens. Official checkpoints with a token head
            hold one more than their own config says: 5.
        share_encoder: One block per layer for all modalities. With ``"vanilla"`` the fused layers
            are then joint self-attention (Eq. 4).
        stochastic_depth: Drop rate of the last layer's branches; layer ``l`` has
            ``stochastic_depth * l / (num_layers - 1)``.
        dropout: Dropout rate after attention and inside the MLP.
        test_with_bottlenecks: ``False`` runs every layer unimodally in eval mode. Vanilla fusion
            takes no notice of it, as in the official code.
        update_order: Every modality once: in a fused layer each updates the bottleneck tokens that
            the one before has updated (Eq. 10-11), and the last one's are those of the next layer.
            Empty for the mean of all (Eq. 9).
        classifier: What the head reads. ``"token"``: the CLS token of each modality, as in the
            paper. ``"gap"``: the mean over the tokens of all modalities, the ``gap`` of the
            official model. ``"gap_per_modality"``: a mean for each modality, the ``gap`` of its
            AV-MAE fork. Only ``"token"`` has CLS tokens.
        n_sampled_frames: 0: every frame of a video is read, in tubelets. Otherwise so many frames,
            evenly spaced, are cut into patches one by one, the official ``temporal_sampling``; see
            ``sampled_frames``. The patches of a video then have one frame.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A value is out of range, or the fields contradict one another.
    """

    modalities: tuple[str, ...] = ("rgb", "spectrogram")
    input_size: Mapping[str, tuple[int, ...]] = _rgb_and_spectrogram((8, 224, 224), (800, 128))
    patch_size: Mapping[str, tuple[int, ...]] = _rgb_and_spectrogram((1, 16, 16), (16, 16))
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_classes: int = 527
    fusion: str = "bottleneck"
    fusion_layer: int = 8
    n_bottlenecks: int = 4
    share_encoder: bool = False
    stochastic_depth: float = 0.0
    dropout: float = 0.0
    test_with_bottlenecks: bool = True
    update_order: tuple[str, ...] = ()
    classifier: str = "token"
    n_sampled_frames: int = 0

    def __post_init__(self) -> None:
        """Normalise containers to tuples and check every field."""
        if isinstance(self.modalities, str) or not isinstance(self.modalities, (tuple, list)):
            raise TypeError(f"modalities must be a tuple of names, got {self.modalities!r}")
        object.__setattr__(self, "modalities", tuple(self.modalities))
        check_modalities(self.modalities)
        object.__setattr__(self, "update_order", _update_order(self))
        for name in _PER_MODALITY:
            object.__setattr__(self, name, self._per_modality(name))
        _check_scalars(self)
        _check_choice("fusion", self.fusion, FUSIONS)
        _check_choice("classifier", self.classifier, CLASSIFIERS)
        _check_heads_and_fusion(self)
        for modality in self.modalities:
            _check_patches(modality, self.input_size[modality], self.patch_size[modality])
            self._check_sampling(modality)

    def _per_modality(self, name: str) -> Sizes:
        """One entry for each modality and no other; entries of absent modalities are dropped."""
        given = getattr(self, name)
        if not isinstance(given, Mapping):
            raise TypeError(f"{name} must be a mapping from modality to size, got {given!r}")
        missing = [m for m in self.modalities if m not in given]
        if missing:
            raise ValueError(f"{name} must name every modality, got none for {', '.join(missing)}")
        for modality in self.modalities:
            if not isinstance(given[modality], (tuple, list)):
                raise TypeError(f"{name}[{modality!r}] must be a tuple, got {given[modality]!r}")
        return Sizes({m: tuple(given[m]) for m in self.modalities})

    def _check_sampling(self, modality: str) -> None:
        patch = self.patch_size[modality]
        if self.n_sampled_frames and len(patch) == 3 and patch[0] != 1:
            raise ValueError(
                f"patch_size[{modality!r}] must have one frame if frames are sampled, got {patch}"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one head, ``D``."""
        return self.hidden_size // self.num_heads

    @property
    def n_slots(self) -> int:
        """Bottleneck tokens that the fused layers really carry: none without a second modality."""
        fuses = self.fusion == "bottleneck" and len(self.modalities) > 1
        return self.n_bottlenecks if fuses else 0

    @property
    def exchanges_nothing(self) -> bool:
        """Whether bottleneck tokens are written in the last layer alone, and read by nobody."""
        last_alone = self.fusion_layer == self.num_layers - 1
        return self.n_slots > 0 and last_alone and not self.update_order

    @property
    def n_cls(self) -> int:
        """CLS tokens of a stream: one if the head reads it, else none."""
        return 1 if self.classifier == "token" else 0

    def sampled_frames(self, modality: str) -> tuple[int, ...] | None:
        """Which frames of a video are read, by index; ``None``: all of the input."""
        size = self.input_size[modality]
        if not self.n_sampled_frames or len(size) != 3:
            return None
        return sampled_frames(size[0], self.n_sampled_frames)

    def grid(self, modality: str) -> tuple[int, ...]:
        """Patches along each axis of a modality's input, after frames are sampled."""
        frames, size = self.sampled_frames(modality), self.input_size[modality]
        if frames is not None:
            size = (len(frames), *size[1:])
        sizes = zip(size, self.patch_size[modality], strict=True)
        return tuple(extent // patch for extent, patch in sizes)

    def n_tokens(self, modality: str) -> int:
        """Own tokens ``N`` of a stream: CLS, if there is one, and the patches."""
        return self.n_cls + prod(self.grid(modality))

    def drop_rate(self, layer: int) -> float:
        """Probability that a residual branch of ``layer`` is dropped in training."""
        return self.stochastic_depth * layer / max(self.num_layers - 1, 1)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them: tuples become lists."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MBTConfig":
        """Inverse of ``to_dict``; an unknown key raises ``ValueError``."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"MBTConfig has no field {', '.join(map(repr, unknown))}")
        return cls(**values)

    @classmethod
    def from_scenic(
        cls, scenic_config: Mapping[str, Any], input_shapes: Mapping[str, tuple[int, ...]]
    ) -> "MBTConfig":
        """Read a config with the official keys (``scenic/projects/mbt``).

        Args:
            scenic_config: The ``config.model`` of scenic together with ``num_classes``.
            input_shapes: ``{"rgb": [B, T, H, W, 3], "spectrogram": [B, time, mel, 3]}``; the batch
                dimension may be left out.

        Raises:
            ValueError: A key is missing, malformed, or asks for something that this library does
                not implement; the message names it.
        """
        return cls(**config_from_scenic(scenic_config, input_shapes))

    def replace(self, **overrides: Any) -> "MBTConfig":
        """A config with some fields changed.

        Args:
            **overrides: Fields of ``MBTConfig``. ``input_size`` and ``patch_size`` may name some of
                the modalities only; the others keep theirs.

        Raises:
            TypeError: An override has the wrong type.
            ValueError: An override is unknown, names a modality that the changed config does not
                have, or contradicts the rest.
        """
        values = self.to_dict() | overrides
        for name in _PER_MODALITY:
            if isinstance(values[name], Mapping):
                values[name] = {**getattr(self, name), **values[name]}
        config = MBTConfig.from_dict(values)
        check_sizes(overrides, config.modalities)
        return config


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def check_sizes(overrides: Mapping[str, Any], modalities: Sequence[str]) -> None:
    """Check that sizes among the overrides are mappings from these modalities.

    Raises:
        TypeError: A size is not a mapping.
        ValueError: A size names another modality.
    """
    for name in _PER_MODALITY:
        given = overrides.get(name, {})
        if not isinstance(given, Mapping):
            raise TypeError(f"{name} must be a mapping from modality to size, got {given!r}")
        unknown = sorted(map(repr, given.keys() - set(modalities)))
        if unknown:
            known = ", ".join(modalities)
            raise ValueError(
                f"{name} must name only modalities of the model ({known}), got {', '.join(unknown)}"
            )


def check_modalities(modalities: tuple[str, ...]) -> None:
    """Refuse names that cannot be those of streams.

    Raises:
        TypeError: A name is not a string.
        ValueError: None is given, one is given twice, or one cannot name a part of a module.
    """
    if not modalities:
        raise ValueError("modalities must name at least one modality, got none")
    if len(set(modalities)) != len(modalities):
        raise ValueError(f"modalities must differ from one another, got {modalities}")
    for name in modalities:
        if not isinstance(name, str):
            raise TypeError(f"modalities must be strings, got {name!r}")
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
            raise ValueError(f"modalities must be public Python identifiers, got {name!r}")
        if name in _RESERVED or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"modalities must not be named like a part of a module, got {name!r}")


def _check_scalars(config: MBTConfig) -> None:
    """Type and range of every field that is one number or flag."""
    for f in fields(config):
        value = getattr(config, f.name)
        if f.type not in _KINDS:
            continue
        if type(value) is not f.type and not (f.type is float and isinstance(value, Real)):
            raise TypeError(f"{f.name} must be {_KINDS[f.type]}, got {value!r}")
        least = 0 if f.name in _MAY_BE_ZERO else 1
        if f.type is int and value < least:
            raise ValueError(f"{f.name} must be at least {least}, got {value}")
        if f.type is float and not 0.0 <= value < 1.0:
            raise ValueError(f"{f.name} must be in [0, 1), got {value}")


def _update_order(config: MBTConfig) -> tuple[str, ...]:
    """The field as a tuple, checked."""
    order = config.update_order
    if isinstance(order, str) or not isinstance(order, (tuple, list)):
        raise TypeError(f"update_order must be a tuple of modalities, got {order!r}")
    order = tuple(order)
    if order and config.fusion != "bottleneck":
        raise ValueError(f"update_order must be empty with fusion {config.fusion!r}, got {order}")
    if order and sorted(map(str, order)) != sorted(config.modalities):
        known = ", ".join(config.modalities)
        raise ValueError(f"update_order must name every modality once ({known}), got {order}")
    return order


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_heads_and_fusion(config: MBTConfig) -> None:
    if config.fusion_layer > config.num_layers:
        raise ValueError(
            f"fusion_layer must be at most num_layers = {config.num_layers} (late fusion), "
            f"got {config.fusion_layer}"
        )
    if config.hidden_size % config.num_heads:
        raise ValueError(
            f"num_heads must divide hidden_size = {config.hidden_size}, got {config.num_heads}"
        )
    if config.head_dim > MAX_HEAD_DIM:
        raise ValueError(
            f"num_heads must give heads of at most {MAX_HEAD_DIM} channels, "
            f"got {config.hidden_size} / {config.num_heads} = {config.head_dim}"
        )


def _check_patches(modality: str, size: tuple[int, ...], patch: tuple[int, ...]) -> None:
    if len(size) not in (2, 3):
        raise ValueError(
            f"input_size[{modality!r}] must be (frames, height, width) or (time, mel), got {size}"
        )
    if len(patch) != len(size):
        raise ValueError(
            f"patch_size[{modality!r}] must have {len(size)} sizes like the input, got {patch}"
        )
    for extent, part in zip(size, patch, strict=True):
        if type(extent) is not int or type(part) is not int:
            raise TypeError(f"sizes of {modality!r} must be integers, got {size} and {patch}")
        if part < 1 or extent < part or extent % part:
            raise ValueError(
                f"patch_size[{modality!r}] must divide the input size {size}, got {patch}"
            )
