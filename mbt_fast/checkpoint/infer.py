"""Guess the config of an official checkpoint from the shapes of its parameters."""

import math
import re
from collections.abc import Mapping
from typing import Any

from mbt_fast.checkpoint.av_mae import is_av_mae
from mbt_fast.config import MBTConfig, check_sizes, sampled_frames
from mbt_fast.errors import CheckpointError

_RGB_SIDE = 224  # height and width of a frame
_MEL_BINS = 128
_BLOCK = "Transformer/encoderblock_0"


def infer_config(params: Mapping[str, Any], **known: Any) -> tuple[MBTConfig, list[str]]:
    """Read from official parameters what their shapes tell, and assume the rest as published.

    Position embeddings are 1-D, so they tell how many patches there are but not their grid: frames
    are assumed to be 224 x 224 pixels and spectrograms to have 128 mel bins, if the count divides.
    The fusion layer leaves no trace; it is assumed to be two thirds of the depth, 8 of 12. Without
    CLS tokens the head is a mean, and how it is taken leaves no trace either: with bottlenecks it
    is assumed to be one per modality, for the official model cannot run ``gap`` with them, else the
    official one over all tokens. A kernel without a time axis is that of sampled frames.

    Args:
        params: Arrays by official path, see ``load_scenic``.
        **known: Fields of ``MBTConfig`` that need not be inferred; ``input_size`` and
            ``patch_size`` may name some of the modalities only.

    Returns:
        The config, and what was assumed for it, one sentence each.

    Raises:
        CheckpointError: The parameters are not an MBT's, or an input size cannot be assumed, as
            for those of the AV-MAE fork.
        TypeError: A known field has the wrong type.
        ValueError: A known field is not one, names an unknown modality, or contradicts the rest.
    """
    if is_av_mae(params):
        raise CheckpointError(
            "a config must be given for weights of the AV-MAE fork, which hold no positions that "
            "tell the size of the input"
        )
    values, assumptions = _architecture(params), []
    check_sizes(known, values["modalities"])
    sizes = {**known.get("input_size", {})}
    for m in values["modalities"]:
        if m not in sizes:
            sizes[m] = _input_size(params, m, values["patch_size"][m])
            assumptions.append(f"input_size of {m} is assumed to be {sizes[m]}")
    if "fusion_layer" not in known and len(values["modalities"]) > 1:
        assumptions.append(f"fusion_layer is assumed to be {values['fusion_layer']}")
    if "classifier" not in known and values["classifier"] != "token":
        assumptions.append(
            f"classifier is assumed to be {values['classifier']}, "
            "for the checkpoint has no CLS token"
        )
    if _samples_frames(params) and "n_sampled_frames" not in known:
        values["n_sampled_frames"] = _n_sampled_frames(params, sizes["rgb"], values)
        assumptions.append(f"n_sampled_frames is assumed to be {values['n_sampled_frames']}")
    inferred = MBTConfig.from_dict({**values, "input_size": sizes})
    return inferred.replace(**known), assumptions


def _architecture(params: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``MBTConfig`` that shapes tell, and the fusion layer, which nothing tells."""
    modalities = _modalities(params)
    suffixed = [f"_{m}" for m in modalities if m != "rgb"]
    share_encoder = any(f"{_BLOCK}{s}/LayerNorm_0/scale" not in params for s in suffixed)
    block = _BLOCK if share_encoder or "rgb" in modalities else f"{_BLOCK}{suffixed[0]}"
    query = f"{block}/MultiHeadDotProductAttention_0/query/kernel"
    hidden_size, num_heads, _ = _shape(params, query, 3)
    layers = {m[1] for p in params if (m := re.match(r"Transformer/encoderblock_(\d+)[_/]", p))}
    values: dict[str, Any] = {
        "modalities": modalities,
        "patch_size": {m: _patch(params, m) for m in modalities},
        "hidden_size": hidden_size,
        "num_layers": len(layers),
        "num_heads": num_heads,
        "mlp_dim": _shape(params, f"{block}/MlpBlock_0/Dense_0/bias", 1)[0],
        "num_classes": _shape(params, "output_projection/bias", 1)[0],
        "fusion": "bottleneck" if "bottleneck" in params else "vanilla",
        "fusion_layer": len(layers) * 2 // 3,
        "classifier": _classifier(params, modalities),
        "share_encoder": share_encoder,
    }
    if "bottleneck" in params:
        values["n_bottlenecks"] = _shape(params, "bottleneck", 3)[1]
    return values


def _classifier(params: Mapping[str, Any], modalities: tuple[str, ...]) -> str:
    if any(path.startswith("cls") and "/" not in path for path in params):
        return "token"
    return "gap_per_modality" if "bottleneck" in params and len(modalities) > 1 else "gap"


def _samples_frames(params: Mapping[str, Any]) -> bool:
    return "embedding/kernel" in params and params["embedding/kernel"].ndim == 4


def _n_sampled_frames(
    params: Mapping[str, Any], size: tuple[int, ...], values: Mapping[str, Any]
) -> int:
    """The number to ask for so that as many frames are read as there are positions for."""
    patch = values["patch_size"]["rgb"]
    per_frame = math.prod(extent // part for extent, part in zip(size[1:], patch[1:], strict=True))
    read, rest = divmod(_n_patches(params, "rgb"), max(per_frame, 1))
    for asked in (read, read - 1):  # the official code may read one more than it is asked for
        if not rest and asked > 0 and len(sampled_frames(size[0], asked)) == read:
            return asked
    raise CheckpointError(
        f"n_sampled_frames must be given in the config, for {_n_patches(params, 'rgb')} patches of "
        f"{size} do not tell it"
    )


def _modalities(params: Mapping[str, Any]) -> tuple[str, ...]:
    """RGB first, which has no suffix; the order of the others is that of the alphabet."""
    matches = (re.fullmatch(r"embedding(?:_(\w+))?/kernel", path) for path in params)
    found = {match[1] for match in matches if match}
    if not found:
        raise CheckpointError("the parameters of an MBT must hold embedding/kernel, got none")
    return (*(["rgb"] if None in found else []), *sorted(found - {None}))


def _shape(params: Mapping[str, Any], path: str, axes: int) -> tuple[int, ...]:
    if path not in params:
        raise CheckpointError(f"the parameters of an MBT must hold {path}, got none")
    shape = tuple(params[path].shape)
    if len(shape) != axes:
        raise CheckpointError(f"{path} must have {axes} axes, got {list(shape)}")
    return shape


def _patch(params: Mapping[str, Any], modality: str) -> tuple[int, ...]:
    if modality == "rgb" and _samples_frames(params):
        return (1, *_shape(params, "embedding/kernel", 4)[:2])
    if modality == "rgb":
        return _shape(params, "embedding/kernel", 5)[:3]
    path = f"embedding_{modality}/kernel"
    return _shape(params, path, 5 if params[path].ndim == 5 else 4)[:-2]


def _input_size(
    params: Mapping[str, Any], modality: str, patch: tuple[int, ...]
) -> tuple[int, ...]:
    """All axes but the first as assumed, and the first as long as the patches then make it."""
    n_patches = _n_patches(params, modality)
    assumed = (_RGB_SIDE, _RGB_SIDE) if len(patch) == 3 else (_MEL_BINS,)
    rest = [size % part for size, part in zip(assumed, patch[1:], strict=True)]
    per_step = math.prod(size // part for size, part in zip(assumed, patch[1:], strict=True))
    if any(rest) or per_step == 0 or n_patches < 1 or n_patches % per_step:
        raise CheckpointError(
            f"input_size[{modality!r}] must be given in the config, "
            f"for {n_patches} patches of {patch} do not tell it"
        )
    return (n_patches // per_step * patch[0], *assumed)


def _n_patches(params: Mapping[str, Any], modality: str) -> int:
    suffix = "" if modality == "rgb" else f"_{modality}"
    path = f"Transformer/posembed_input{suffix}/pos_embedding"
    n_cls = 1 if _classifier(params, (modality,)) == "token" else 0
    return _shape(params, path, 3)[1] - n_cls
