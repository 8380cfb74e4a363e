"""Fields of a config that a caller changes; sizes are merged, modality by modality."""

from collections.abc import Mapping, Sequence
from typing import Any

from mbt_fast.models.config import MBTConfig

_PER_MODALITY = ("input_size", "patch_size")


def changed(config: MBTConfig, overrides: Mapping[str, Any]) -> MBTConfig:
    """A config with some fields changed.

    Args:
        config: What to start from.
        overrides: Fields of ``MBTConfig``. ``input_size`` and ``patch_size`` may name some of the
            modalities only; the others keep theirs.

    Raises:
        TypeError: An override has the wrong type.
        ValueError: An override is unknown, names a modality that the changed config does not have,
            or contradicts the rest.
    """
    values = config.to_dict()
    sizes = {name: values[name] for name in _PER_MODALITY}
    config = MBTConfig.from_dict({**values, **overrides, **_merged(sizes, overrides)})
    check_sizes(overrides, config.modalities)
    return config


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


def _merged(sizes: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Each size of ``sizes`` with the entries that ``overrides`` has for it."""
    given = {name: overrides[name] for name in sizes if name in overrides}
    return {
        name: {**sizes[name], **entries} if isinstance(entries, Mapping) else entries
        for name, entries in given.items()
    }
