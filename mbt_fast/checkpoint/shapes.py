"""The state dict of an MBT as data: every name with its shape, and the check against it."""

from collections.abc import Iterable, Mapping
from typing import Any

from mbt_fast.errors import CheckpointError
from mbt_fast.models.config import MBTConfig

Shape = tuple[int, ...]

_NAMES_SHOWN = 5


def block_shapes(width: int, mlp_dim: int) -> dict[str, Shape]:
    """Names and shapes inside one Transformer block; timm's, with q, k and v stacked in ``qkv``."""
    return {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (mlp_dim, width),
        "mlp.fc1.bias": (mlp_dim,),
        "mlp.fc2.weight": (width, mlp_dim),
        "mlp.fc2.bias": (width,),
    }


def block_owners(config: MBTConfig) -> tuple[str, ...]:
    """Whose blocks a layer holds: one per modality, or the single ``"shared"`` one."""
    return ("shared",) if config.share_encoder else config.modalities


def expected_shapes(config: MBTConfig) -> dict[str, Shape]:
    """Names and shapes of the state dict of ``MBT(config)``.

    Args:
        config: The model; ``bottleneck_tokens`` exists only where ``config.n_slots > 0``.

    Returns:
        One entry for each tensor of the state dict.
    """
    width = config.hidden_size
    shapes: dict[str, Shape] = {}
    for m in config.modalities:
        shapes[f"embed.{m}.cls_token"] = (1, 1, width)
        shapes[f"embed.{m}.pos_embed"] = (1, config.n_tokens(m), width)
        shapes[f"embed.{m}.proj.weight"] = (width, 3, *config.patch_size[m])
        shapes[f"embed.{m}.proj.bias"] = (width,)
    if config.n_slots:
        shapes["bottleneck_tokens"] = (1, config.n_slots, width)
    for layer in range(config.num_layers):
        for owner in block_owners(config):
            for name, shape in block_shapes(width, config.mlp_dim).items():
                shapes[f"blocks.{layer}.{owner}.{name}"] = shape
    shapes["norm.weight"] = shapes["norm.bias"] = (width,)
    shapes["head.weight"] = (config.num_classes, width)
    shapes["head.bias"] = (config.num_classes,)
    return shapes


def vit_shapes(
    width: int, mlp_dim: int, depth: int, patch: Shape, n_positions: int
) -> dict[str, Shape]:
    """Names and shapes of a plain image ViT, timm's, without its classifier."""
    shapes: dict[str, Shape] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, n_positions, width),
        "patch_embed.proj.weight": (width, 3, *patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for layer in range(depth):
        for name, shape in block_shapes(width, mlp_dim).items():
            shapes[f"blocks.{layer}.{name}"] = shape
    return shapes


def check_shapes(found: Mapping[str, Any], expected: Mapping[str, Shape], what: str) -> None:
    """Check that the arrays or tensors of ``found`` have exactly the ``expected`` names and shapes.

    Args:
        found: Arrays or tensors by name.
        expected: Shapes by name.
        what: Opens the message, e.g. ``"the weights do not fit the config"``.

    Raises:
        CheckpointError: Names missing, unexpected and misshapen entries, up to five of each.
    """
    misshapen = []
    for name in expected.keys() & found.keys():
        shape = getattr(found[name], "shape", None)
        if shape is None:
            misshapen.append(f"{name} must be an array, got {type(found[name]).__name__}")
        elif tuple(shape) != tuple(expected[name]):
            misshapen.append(f"{name} must be {list(expected[name])}, got {list(shape)}")
    problems = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys(),
        "misshapen": misshapen,
    }
    reasons = [f"{kind} {shortened(names)}" for kind, names in problems.items() if names]
    if reasons:
        raise CheckpointError(f"{what}: {'; '.join(reasons)}")


def shortened(names: Iterable[str]) -> str:
    """The first few names in order, and how many there are if that is not all."""
    ordered = sorted(map(str, names))
    shown = ", ".join(ordered[:_NAMES_SHOWN])
    return shown if len(ordered) <= _NAMES_SHOWN else f"{shown}, ... ({len(ordered)} in all)"
