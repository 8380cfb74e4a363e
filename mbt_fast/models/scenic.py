"""Official configs: what scenic's keys (``scenic/projects/mbt``) mean in our own."""

from collections.abc import Mapping, Sequence
from typing import Any

_MODALITIES = ("rgb", "spectrogram")  # the official code knows no other
_RENAMED = ("fusion_layer", "hidden_size", "num_heads", "mlp_dim", "num_layers", "num_classes")


def config_from_scenic(
    scenic_config: Mapping[str, Any], input_shapes: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Translate an official config to the keyword arguments of ``MBTConfig``.

    A missing key has the default of the official model classes: ``use_bottleneck=False``,
    ``n_bottlenecks=4``, ``dropout_rate=0.1``, ``attention_dropout_rate=0.1``. With the token head
    the official code adds one bottleneck token to ``n_bottlenecks``, and so does this function.

    Args:
        scenic_config: The ``config.model`` of scenic together with ``num_classes``.
        input_shapes: ``{"rgb": [B, T, H, W, 3], "spectrogram": [B, time, mel, 3]}``; the batch
            dimension may be left out.

    Returns:
        Keyword arguments of ``MBTConfig``; the modalities keep the order of ``modality_fusion``.

    Raises:
        ValueError: A key is missing, or asks for something that this library does not implement.
    """
    _check_supported(scenic_config)
    modalities = tuple(_required(scenic_config, "modality_fusion"))
    patch = tuple((scenic_config.get("patches") or {}).get("size") or ())
    if len(patch) != 3:
        raise ValueError(f"patches.size must be [height, width, frames], got {list(patch)}")
    height, width, frames = patch
    patch_size = {"rgb": (frames, height, width), "spectrogram": (height, width)}
    return {
        "modalities": modalities,
        "input_size": {m: _input_size(m, input_shapes) for m in modalities},
        "patch_size": {m: patch_size[m] for m in modalities},
        **{key: _required(scenic_config, key) for key in _RENAMED},
        "fusion": "bottleneck" if scenic_config.get("use_bottleneck", False) else "vanilla",
        "n_bottlenecks": scenic_config.get("n_bottlenecks", 4) + 1,
        "share_encoder": scenic_config.get("share_encoder", False),
        "stochastic_depth": scenic_config.get("stochastic_droplayer_rate") or 0.0,
        "dropout": scenic_config.get("dropout_rate", 0.1),
        "test_with_bottlenecks": scenic_config.get("test_with_bottlenecks", True),
    }


def _required(scenic_config: Mapping[str, Any], key: str) -> Any:
    if scenic_config.get(key) is None:
        raise ValueError(f"{key} must be given in the scenic config, got none")
    return scenic_config[key]


def _check_supported(scenic_config: Mapping[str, Any]) -> None:
    temporal = scenic_config.get("temporal_encoding_config") or {}
    attention = scenic_config.get("attention_config") or {}
    asked_and_supported = {
        "classifier": (scenic_config.get("classifier", "gap"), "token"),
        "attention_dropout_rate": (scenic_config.get("attention_dropout_rate", 0.1), 0),
        "temporal_encoding_config.method": (temporal.get("method"), "3d_conv"),
        "attention_config.type": (attention.get("type", "spacetime"), "spacetime"),
        "representation_size": (scenic_config.get("representation_size"), None),
    }
    for key, (asked, supported) in asked_and_supported.items():
        if asked != supported:
            raise ValueError(f"{key} must be {supported!r}, got {asked!r}")
    unknown = [m for m in _required(scenic_config, "modality_fusion") if m not in _MODALITIES]
    if unknown:
        raise ValueError(f"modality_fusion must name rgb or spectrogram, got {unknown[0]!r}")


def _input_size(modality: str, input_shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    if modality not in input_shapes:
        raise ValueError(f"input_shapes must name every modality, got none for {modality!r}")
    shape = tuple(input_shapes[modality])
    sizes = 3 if modality == "rgb" else 2
    if len(shape) not in (sizes + 1, sizes + 2) or shape[-1] != 3:
        layout = "[B, T, H, W, 3]" if modality == "rgb" else "[B, time, mel, 3]"
        raise ValueError(
            f"input_shapes[{modality!r}] must be {layout}, with or without B, got {list(shape)}"
        )
    return shape[-sizes - 1 : -1]
