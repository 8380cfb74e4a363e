"""The arguments of a model's forward: what every kind of model refuses of them."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from mbt_fast.ops.autocast import autocast_dtype
from mbt_fast.ops.checks import check_length

Inputs = Mapping[str, Tensor]
GivenLengths = Mapping[str, Tensor | None]  # ``None`` says what a missing entry says: no padding


def check_names(inputs: Inputs, modalities: Sequence[str]) -> None:
    """Refuse what does not name some of the model's modalities.

    Raises:
        TypeError: No mapping.
        ValueError: A name is unknown, or there is none.
    """
    _check_mapping("inputs", inputs)
    unknown = [modality for modality in inputs if modality not in modalities]
    if unknown or not inputs:
        raise ValueError(
            f"inputs must name some of {', '.join(modalities)}, "
            f"got {', '.join(map(repr, unknown)) or 'none'}"
        )


def check_input(inputs: Inputs, modality: str, shape: tuple[int, ...], weight: Tensor) -> None:
    """Refuse an input that the model cannot embed.

    Args:
        inputs: All, of which the first, which is to be checked first, tells the batch size.
        modality: Which of them.
        shape: What it must have after the batch.
        weight: Has the dtype and the device that it must have. Under autocast any float type fits.

    Raises:
        TypeError: No tensor, or another dtype.
        ValueError: Another shape or device.
    """
    x, name = inputs[modality], f"inputs[{modality!r}]"
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    first = next(iter(inputs.values()))
    expected = (first.shape[0] if first.ndim else 0, *shape)
    if tuple(x.shape) != expected:
        raise ValueError(f"{name} must have shape {list(expected)}, got {list(x.shape)}")
    if not x.is_floating_point() or autocast_dtype(x) != autocast_dtype(weight):
        raise TypeError(f"{name} must have dtype {weight.dtype} like the weights, got {x.dtype}")
    if x.device != weight.device:
        raise ValueError(f"{name} must be on {weight.device} like the weights, got {x.device}")


def checked_lengths(
    lengths: GivenLengths | None, inputs: Inputs, most: Callable[[str], int]
) -> dict[str, Tensor]:
    """The entries that say something, as int32.

    Args:
        lengths: Per modality ``[B]``.
        inputs: Per modality ``[B, ...]``.
        most: Own tokens of a modality.

    Raises:
        TypeError: No mapping, or an entry of another type or dtype.
        ValueError: An entry has no input, or another shape, device or value.
    """
    if lengths is None:
        return {}
    _check_mapping("lengths", lengths)
    checked = {}
    for modality, length in lengths.items():
        if modality not in inputs:
            raise ValueError(f"lengths must be of given inputs, got {modality!r} without input")
        name = f"lengths[{modality!r}]"
        checked[modality] = check_length(name, length, inputs[modality], most(modality))
    return without_none(checked)


def without_none(lengths: GivenLengths | None) -> dict[str, Tensor]:
    """The entries that say something."""
    return {m: length for m, length in (lengths or {}).items() if length is not None}


def _check_mapping(name: str, given: object) -> None:
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise TypeError(f"{name} must be a mapping from modality to tensor, got {kind}")
