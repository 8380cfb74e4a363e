"""Named sizes of the model."""

from typing import Any

from mbt_fast.config import MBTConfig
from mbt_fast.models.mbt import MBT

# The sizes of ViT (Dosovitskiy et al., 2021, Table 1; small: DeiT). Two thirds of the layers are
# unimodal, as in the paper's best MBT-B. mbt_tiny is for tests.
_MODELS: dict[str, dict[str, Any]] = {
    "mbt_tiny": {
        "input_size": {"rgb": (2, 32, 32), "spectrogram": (64, 32)},
        "hidden_size": 64,
        "num_layers": 4,
        "num_heads": 4,
        "mlp_dim": 128,
        "num_classes": 10,
        "fusion_layer": 2,
    },
    "mbt_small": {"hidden_size": 384, "num_heads": 6, "mlp_dim": 1536},
    "mbt_base": {},
    "mbt_large": {
        "hidden_size": 1024,
        "num_layers": 24,
        "num_heads": 16,
        "mlp_dim": 4096,
        "fusion_layer": 16,
    },
}


def list_models() -> list[str]:
    """Names that ``create_model`` knows."""
    return list(_MODELS)


def config_for(name: str, **overrides: Any) -> MBTConfig:
    """The configuration of a named model.

    Args:
        name: One of ``list_models()``.
        **overrides: Fields of ``MBTConfig`` that differ; ``input_size`` and ``patch_size`` may name
            some of the modalities only.

    Raises:
        TypeError: An override has the wrong type.
        ValueError: Unknown name, field or modality, or a contradiction.
    """
    if name not in _MODELS:
        raise ValueError(f"name must be one of {', '.join(_MODELS)}, got {name!r}")
    return MBTConfig.from_dict(_MODELS[name]).replace(**overrides)


def create_model(name: str, **overrides: Any) -> MBT:
    """Build a named model with random weights.

    Args:
        name: One of ``list_models()``.
        **overrides: Fields of ``MBTConfig`` that differ, such as ``fusion_layer=10``; see
            ``config_for`` in this module.

    Example:
        >>> model = create_model("mbt_tiny", n_bottlenecks=5)
        >>> model({"rgb": torch.zeros(1, 3, 2, 32, 32)}).shape
        torch.Size([1, 10])
    """
    return MBT(config_for(name, **overrides))
