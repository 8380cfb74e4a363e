"""Official configs: what scenic's keys (``scenic/projects/mbt``) mean in our own."""

from collections.abc import Mapping, Sequence
from math import ceil
from struct import pack, unpack
from typing import Any

# Keys of the official model whose values mean the same wherever they are given. Not n_bottlenecks:
# a token head adds one to the official number.
SCENIC_KEYS = frozenset({
    "modality_fusion", "use_bottleneck", "test_with_bottlenecks", "share_encoder", "fusion_layer",
    "hidden_size", "patches", "attention_config", "num_heads", "mlp_dim", "num_layers",
    "representation_size", "classifier", "dropout_rate", "attention_dropout_rate",
    "stochastic_droplayer_rate", "temporal_encoding_config", "num_classes",
})  # fmt: skip
_MODALITIES = ("rgb", "spectrogram")  # the official code knows no other
_SIZES = ("fusion_layer", "hidden_size", "num_heads", "mlp_dim", "num_layers", "num_classes")
CLASSIFIERS = ("token", "gap", "gap_per_modality")  # the last is ours, for the AV-MAE fork's gap
_METHODS = ("3d_conv", "temporal_sampling")
_KINDS = {"an integer": (int,), "a bool": (bool,), "a number": (int, float)}


def config_from_scenic(
    scenic_config: Mapping[str, Any], input_shapes: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Translate an official config to the keyword arguments of ``MBTConfig``.

    A missing key has the default of the official model classes: ``use_bottleneck=False``,
    ``n_bottlenecks=4``, ``dropout_rate=0.1``, ``attention_dropout_rate=0.1``, ``classifier="gap"``.
    With the token head the official code adds one bottleneck token to ``n_bottlenecks``, and so
    does this function. ``num_classes`` may stand under ``dataset_configs``, as in the published
    config.

    Returns:
        Keyword arguments of ``MBTConfig``; the modalities keep the order of ``modality_fusion``.
        Arguments and errors are those of ``MBTConfig.from_scenic``.
    """
    _check_supported(scenic_config)
    scenic_config = _with_num_classes(scenic_config)
    modalities = modalities_of(scenic_config)
    n_sampled_frames = _n_sampled_frames(scenic_config)
    height, width, frames = _patch(scenic_config, one_frame=n_sampled_frames > 0)
    patch_size = {"rgb": (frames, height, width), "spectrogram": (height, width)}

    def optional(key: str, kind: str, default: Any) -> Any:
        return _typed(key, scenic_config.get(key, default), kind)

    classifier = scenic_config.get("classifier", "gap")
    drop_rate = scenic_config.get("stochastic_droplayer_rate") or 0.0
    return {
        "modalities": modalities,
        "input_size": {m: _input_size(m, input_shapes) for m in modalities},
        "patch_size": {m: patch_size[m] for m in modalities},
        **{key: _typed(key, _required(scenic_config, key), "an integer") for key in _SIZES},
        "fusion": "bottleneck" if optional("use_bottleneck", "a bool", False) else "vanilla",
        "n_bottlenecks": optional("n_bottlenecks", "an integer", 4) + (classifier == "token"),
        "share_encoder": optional("share_encoder", "a bool", False),
        "stochastic_depth": _typed("stochastic_droplayer_rate", drop_rate, "a number"),
        "dropout": optional("dropout_rate", "a number", 0.1),
        "test_with_bottlenecks": optional("test_with_bottlenecks", "a bool", True),
        "classifier": classifier,
        "n_sampled_frames": n_sampled_frames,
    }


def sampled_frames(frames: int, count: int) -> tuple[int, ...]:
    """Which of ``frames`` the official ``temporal_sampling`` reads for ``n_sampled_frames=count``.

    The official code rounds ``k * frames / (count + 1)``, ``k = 1, 2, ...``, as far as
    ``arange`` in float32 goes. For some numbers, such as 2 of 32, that is one step further than
    ``count``, and the last frame is read too. Weights depend on it, so this function does the same.
    """
    if count >= frames:
        return tuple(range(frames))
    step = frames / (count + 1)
    start = _float32(step)
    width = _float32(_float32(step + step) - start)
    times = [_float32(start + _float32(k * width)) for k in range(ceil((frames - step) / step))]
    return tuple(min(round(time), frames - 1) for time in times)


def _float32(number: float) -> float:
    """The nearest number of float32; without torch, which may be tracing or on ``meta``."""
    return float(unpack("f", pack("f", number))[0])


def modalities_of(scenic_config: Mapping[str, Any]) -> tuple[str, ...]:
    """The ``modality_fusion`` of an official config.

    Raises:
        ValueError: It is missing, malformed, or names another modality than the official two.
    """
    names = _required(scenic_config, "modality_fusion")
    if not isinstance(names, (list, tuple)):
        raise ValueError(f"modality_fusion must be a list of names, got {names!r}")
    unknown = [m for m in names if m not in _MODALITIES]
    if unknown:
        raise ValueError(f"modality_fusion must name rgb or spectrogram, got {unknown[0]!r}")
    return tuple(names)


def input_sizes(scenic_config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Input sizes by modality from the ``dataset_configs`` of a whole config, where it has them.

    Raises:
        ValueError: ``dataset_configs`` is malformed.
    """
    data = _nested(scenic_config, "dataset_configs")
    sizes: dict[str, tuple[int, ...]] = {}
    if "num_frames" in data and "crop_size" in data:
        sizes["rgb"] = (data["num_frames"], data["crop_size"], data["crop_size"])
    if "num_spec_frames" in data and "spec_shape" in data:
        count, shape = data["num_spec_frames"], data["spec_shape"]
        if type(count) is not int or not isinstance(shape, (list, tuple)) or len(shape) != 2:
            raise ValueError(
                "dataset_configs.num_spec_frames and spec_shape must be an integer and "
                f"[time, mel], got {count!r} and {shape!r}"
            )
        sizes["spectrogram"] = (count * shape[0], shape[1])
    return sizes


def _required(scenic_config: Mapping[str, Any], key: str) -> Any:
    if scenic_config.get(key) is None:
        raise ValueError(f"{key} must be given in the scenic config, got none")
    return scenic_config[key]


def _nested(scenic_config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A nested mapping, empty where there is none."""
    value = scenic_config.get(key)
    if value is not None and not hasattr(value, "get"):  # ml_collections.ConfigDict is no Mapping
        raise ValueError(f"{key} must be a mapping, got {value!r}")
    return value or {}


def _typed(name: str, value: Any, kind: str) -> Any:
    if type(value) not in _KINDS[kind]:
        raise ValueError(f"{name} must be {kind}, got {value!r}")
    return value


def _check_supported(scenic_config: Mapping[str, Any]) -> None:
    temporal = _nested(scenic_config, "temporal_encoding_config")
    attention = _nested(scenic_config, "attention_config")
    asked_and_supported = {
        "attention_dropout_rate": (scenic_config.get("attention_dropout_rate", 0.1), 0),
        "attention_config.type": (attention.get("type", "spacetime"), "spacetime"),
        "representation_size": (scenic_config.get("representation_size"), None),
    }
    for key, (asked, supported) in asked_and_supported.items():
        if asked != supported:
            raise ValueError(f"{key} must be {supported!r}, got {asked!r}")
    _check_choice("classifier", scenic_config.get("classifier", "gap"), CLASSIFIERS)
    _check_choice("temporal_encoding_config.method", temporal.get("method"), _METHODS)


def _check_choice(key: str, asked: Any, supported: Sequence[str]) -> None:
    if asked not in supported:
        raise ValueError(f"{key} must be {' or '.join(map(repr, supported))}, got {asked!r}")


def _with_num_classes(scenic_config: Mapping[str, Any]) -> Mapping[str, Any]:
    if scenic_config.get("num_classes") is not None:
        return scenic_config
    data = _nested(scenic_config, "dataset_configs")
    return {**scenic_config, "num_classes": data.get("num_classes")}


def _n_sampled_frames(scenic_config: Mapping[str, Any]) -> int:
    temporal = _nested(scenic_config, "temporal_encoding_config")
    if temporal.get("method") != "temporal_sampling":
        return 0
    name = "temporal_encoding_config.n_sampled_frames"
    count: int = _typed(name, temporal.get("n_sampled_frames"), "an integer")
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count


def _patch(scenic_config: Mapping[str, Any], one_frame: bool) -> list[int]:
    """Height, width and frames of a patch; sampled frames are cut into patches one by one."""
    size = _nested(scenic_config, "patches").get("size")
    sizes = (2, 3) if one_frame else (3,)
    if not isinstance(size, (list, tuple)) or len(size) not in sizes:
        raise ValueError(f"patches.size must be [height, width, frames], got {size!r}")
    patch = [_typed("each of patches.size", extent, "an integer") for extent in size]
    return [*patch[:2], 1] if one_frame else patch


def _input_size(modality: str, input_shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    if modality not in input_shapes:
        raise ValueError(f"input_shapes must name every modality, got none for {modality!r}")
    given = input_shapes[modality]
    shape = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    sizes = 3 if modality == "rgb" else 2
    if len(shape) not in (sizes + 1, sizes + 2) or shape[-1] != 3:
        layout = "[B, T, H, W, 3]" if modality == "rgb" else "[B, time, mel, 3]"
        raise ValueError(
            f"input_shapes[{modality!r}] must be {layout}, with or without B, got {shape or given}"
        )
    return shape[-sizes - 1 : -1]
