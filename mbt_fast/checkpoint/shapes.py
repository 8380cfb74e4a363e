"""The state dict of an MBT as data: names, shapes and the one dtype; and the checks against it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mbt_fast.config import MBTConfig
from mbt_fast.errors import CheckpointError

Shape = tuple[int, ...]

_NAMES_SHOWN = 5
_NARROW = ("float16", "bfloat16")
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
        config: The model; ``bottleneck_tokens`` exists only where ``config.n_slots > 0``, and CLS
            tokens only where the head reads them.

    Returns:
        One entry for each tensor of the state dict.
    """
    width = config.hidden_size
    shapes: dict[str, Shape] = {}
    for m in config.modalities:
        if config.n_cls:
            shapes[f"embed.{m}.cls_token"] = (1, 1, width)
        shapes[f"embed.{m}.pos_embed"] = (1, config.n_tokens(m), width)
        shapes[f"embed.{m}.proj.weight"] = (width, 3, *config.patch_size[m])
        shapes[f"embed.{m}.proj.bias"] = (width,)
    if config.n_slots:
        shapes["bottleneck_tokens"] = (1, config.n_slots, width)
    owners = [f"{layer}.{m}" for layer in range(config.num_layers) for m in block_owners(config)]
    return {
        **shapes,
        **_blocks(owners, width, config.mlp_dim),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (config.num_classes, width),
        "head.bias": (config.num_classes,),
    }


def vit_shapes(
    width: int, mlp_dim: int, depth: int, patch: Shape, n_positions: int
) -> dict[str, Shape]:
    """Names and shapes of a plain image ViT, timm's, without its classifier."""
    return {
        "cls_token": (1, 1, width),
        "pos_embed": (1, n_positions, width),
        "patch_embed.proj.weight": (width, 3, *patch),
        "patch_embed.proj.bias": (width,),
        **_blocks(range(depth), width, mlp_dim),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }


def _blocks(owners: Iterable[Any], width: int, mlp_dim: int) -> dict[str, Shape]:
    shapes = block_shapes(width, mlp_dim)
    return {f"blocks.{o}.{name}": shape for o in owners for name, shape in shapes.items()}


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


def check_dtypes(tensors: Mapping[str, Tensor], what: str) -> None:
    """Check that the tensors have one dtype among float16, bfloat16, float32 and float64.

    Weights of several dtypes are refused, not cast: the caller must say which one is meant. Norms
    alone may be in float32 where the rest is narrower.

    Args:
        tensors: Weights by name.
        what: Opens the message, e.g. ``"the weights cannot be saved"``.

    Raises:
        CheckpointError: Names the tensors that are not floating point, or that differ from most.
    """
    kinds = {name: dtype_name(tensor.dtype) for name, tensor in tensors.items()}
    wrong = [f"{n} ({kinds[n]})" for n, t in tensors.items() if t.dtype not in _FLOATING]
    if wrong:
        allowed = ", ".join(map(dtype_name, _FLOATING))
        raise CheckpointError(f"{what}: dtypes must be one of {allowed}, got {shortened(wrong)}")
    counts = Counter(kinds.values())
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        of_norms = "float32" if usual in _NARROW else usual
        odd = [
            f"{name} ({kind})"
            for name, kind in kinds.items()
            if kind != usual and not (_is_of_a_norm(name) and kind == of_norms)
        ]
        if odd:
            raise CheckpointError(f"{what}: all must be {usual} like most, got {shortened(odd)}")


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors in one dtype; as they are without ``dtype``.

    Raises:
        CheckpointError: Tensors are not floating point, or hold numbers beyond ``dtype``'s range.
    """
    if dtype is None:
        return dict(tensors)
    wrong = [
        f"{n} ({dtype_name(t.dtype)})" for n, t in tensors.items() if not t.is_floating_point()
    ]
    if wrong:
        raise CheckpointError(f"what is cast must be floating point, got {shortened(wrong)}")
    narrow = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    beyond = [
        name
        for name, tensor in tensors.items()
        if not torch.equal(narrow[name].isfinite(), tensor.to(torch.float64).isfinite())
    ]
    if beyond:
        raise CheckpointError(
            f"weights must be in the range of {dtype_name(dtype)}, got more in {shortened(beyond)}"
        )
    return narrow


def _is_of_a_norm(name: str) -> bool:
    """As ``norm1.weight`` is, and ``layernorm_after.bias`` of other encoders."""
    return "norm" in name.split(".")[-2:][0]


def dtype_name(dtype: torch.dtype) -> str:
    """As numpy and messages have it, without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def shortened(names: Iterable[str]) -> str:
    """The first few names in order, and how many there are if that is not all."""
    ordered = sorted(map(str, names))
    shown = ", ".join(ordered[:_NAMES_SHOWN])
    return shown if len(ordered) <= _NAMES_SHOWN else f"{shown}, ... ({len(ordered)} in all)"
