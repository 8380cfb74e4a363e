"""Which family each tower belongs to, and whether it really is what its attributes say.

Attributes can deceive: a post-norm block may have the names of a pre-norm one. So every layer is
also run, once as it is and once taken apart.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mbt_fast.functional import bottleneck_attention
from mbt_fast.layers.hooks import has_hooks
from mbt_fast.models.encoders.family import Family, Layer, Need, Tower, look_up
from mbt_fast.models.encoders.hf_vit import HuggingFaceVideoMAE, HuggingFaceViT4, HuggingFaceViT5
from mbt_fast.models.encoders.timm_vit import TimmViT, TimmViT05
from mbt_fast.models.encoders.torch_encoder import TorchEncoder
from mbt_fast.ops.checks import MAX_HEAD_DIM, MIN_HEAD_DIM

FAMILIES: tuple[Family, ...] = (
    TimmViT(),
    TimmViT05(),
    HuggingFaceVideoMAE(),
    HuggingFaceViT4(),
    HuggingFaceViT5(),
    TorchEncoder(),
)
TRIAL_ROWS = 5


class Size(NamedTuple):
    """What all layers of all towers must have in common."""

    channels: int
    heads: int
    head_dim: int

    def __str__(self) -> str:
        """As messages say it."""
        return f"{self.channels} channels and {self.heads} heads of {self.head_dim}"


def families_of(towers: Mapping[str, Tower]) -> dict[str, Family]:
    """Return the family of each tower.

    Raises:
        TypeError: A tower is not a module.
        ValueError: A tower is of no family, something in it does not fit, or it differs from the
            first one in depth, width or heads; the message names the first such thing.
    """
    families = {m: _family_of(_name(m), tower) for m, tower in towers.items()}
    for modality, family in families.items():
        _check_needs(_name(modality), family.body(towers[modality]), family.tower_needs)
        if family.tower_parts is not None:
            _check_nothing_else(_name(modality), towers[modality], family.tower_parts)
    _check_depth(families, towers)
    first: tuple[str, Size] | None = None
    for where, layer, family in _layers(families, towers):
        _check_needs(where, layer, family.layer_needs)
        _check_parts(where, layer, family)
        size = _try(where, layer, family)
        first = first or (where, size)
        if size != first[1]:
            raise ValueError(f"{where} must have {first[1]} like {first[0]}, got {size}")
    return families


def _name(modality: str) -> str:
    return f"towers[{modality!r}]"


def _family_of(name: str, tower: Tower) -> Family:
    if not isinstance(tower, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {tower!r}")
    for family in FAMILIES:
        if family.recognises(tower):
            return family
    known = "; ".join(f"{family.title} ({', '.join(family.signs)})" for family in FAMILIES)
    raise ValueError(f"{name} must have the attributes of {known}; got {type(tower).__name__}")


def _layers(
    families: Mapping[str, Family], towers: Mapping[str, Tower]
) -> Iterator[tuple[str, Layer, Family]]:
    for modality, family in families.items():
        for index, layer in enumerate(family.layers(towers[modality])):
            yield f"{_name(modality)}.{family.stack}[{index}]", layer, family


def _check_depth(families: Mapping[str, Family], towers: Mapping[str, Tower]) -> None:
    depths = {m: len(family.layers(towers[m])) for m, family in families.items()}
    first = next(iter(depths))
    for modality, depth in depths.items():
        if depth != depths[first]:
            raise ValueError(
                f"{_name(modality)} must have {depths[first]} layers like {_name(first)}, "
                f"got {depth}"
            )


def check_training(where: str, layer: Layer, family: Family) -> None:
    """Refuse to train what only evaluates as it should.

    Raises:
        ValueError: The layer drops attention weights.
    """
    if layer.training:
        _check_needs(where, layer, family.training_needs)


def warn_of_hooks(where: str, layer: Layer, family: Family) -> None:
    """Say which hooks are passed over in a layer that is taken apart."""
    parts = [part for part in family.parts if isinstance(look_up(layer, part), nn.Module)]
    owners = {part.rpartition(".")[0] for part in family.parts}
    owners |= {owner.rpartition(".")[0] for owner in owners}  # the layer itself is ""
    for owner in sorted(owners):
        if has_hooks(look_up(layer, owner) if owner else layer):
            name = f"{where}.{owner}" if owner else where
            warnings.warn(
                f"hooks on {name} are not called, for the layer is taken apart around its "
                f"attention; these parts of it can be hooked: {', '.join(parts)}",
                stacklevel=2,
            )


def _check_needs(where: str, owner: Tower | Layer, needs: tuple[Need, ...]) -> None:
    for need in needs:
        value = look_up(owner, need.path, need.value)
        if value != need.value:
            kind = type(value).__name__ if isinstance(value, nn.Module) else repr(value)
            raise ValueError(f"{where}.{need.path} must be {need.value!r} ({need.why}), got {kind}")


def _check_parts(where: str, layer: Layer, family: Family) -> None:
    for part in family.parts:
        if look_up(layer, part) is None:
            raise ValueError(f"{where} must have {part}, got {type(layer).__name__} without it")
    _check_nothing_else(where, layer, (*family.parts, *family.optional_parts))


def _check_nothing_else(where: str, owner: nn.Module, parts: tuple[str, ...]) -> None:
    """No parameter is left over that would go unused."""
    known = tuple(f"{part}." for part in parts)
    for name, _ in owner.named_parameters():
        if not f"{name}.".startswith(known):
            raise ValueError(
                f"{where} must have no parameters but those of {', '.join(parts)}, got {name}"
            )


@torch.no_grad()
def _try(where: str, layer: Layer, family: Family) -> Size:
    """Run a layer as it is and taken apart, on a few random tokens, in eval mode."""
    weight = next(p for p in layer.parameters() if p.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    try:
        with _evaluating(layer):
            tokens = torch.randn(1, TRIAL_ROWS, family.width(layer), generator=generator)
            tokens = tokens.to(weight)
            packed = family.packed(layer, tokens)
            size = Size(family.width(layer), *packed.shape[-2:])
            _check_head_dim(where, size)
            (heads,) = bottleneck_attention([packed], 0)
            apart = family.finish(layer, tokens, heads)
            whole = family.whole(layer, tokens)
    except (AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{where} must run on tokens [B, S, C], whole and in parts, got {error}"
        ) from error
    if not tokens.is_meta and not _same(apart, whole):
        raise ValueError(
            f"{where} must compute y = x + Attention(norm(x)), z = y + MLP(norm(y)), "
            f"got {type(layer).__name__}, whose own forward gives something else"
        )
    return size


def _check_head_dim(where: str, size: Size) -> None:
    if not MIN_HEAD_DIM <= size.head_dim <= MAX_HEAD_DIM:
        raise ValueError(
            f"{where} must have heads of {MIN_HEAD_DIM} to {MAX_HEAD_DIM} channels, got {size}"
        )


def _same(apart: Tensor, whole: Tensor) -> bool:
    """Whether half of the digits agree, float32's where a part of the layer may compute in it."""
    eps = max(torch.finfo(whole.dtype).eps, torch.finfo(torch.float32).eps)
    error = (apart - whole).abs().max()
    return bool(error <= eps**0.5 * whole.abs().max())


@contextmanager
def _evaluating(layer: Layer) -> Iterator[None]:
    modes = {module: module.training for module in layer.modules()}
    layer.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
