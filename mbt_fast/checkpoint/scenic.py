"""Official MBT weights: the names of ``scenic/projects/mbt``, to and from a state dict.

The naming is written once, in ``parameter_table``; both directions read it. Sources: the module
tree of ``scenic/projects/mbt/model.py`` and, for the file, ``flax.serialization``.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mbt_fast.checkpoint.av_mae import is_av_mae, with_official_names
from mbt_fast.checkpoint.files import check_not_orbax, replacing
from mbt_fast.checkpoint.flax_msgpack import Unreadable, pack, unpack
from mbt_fast.checkpoint.layouts import (
    FRAME_CONVOLUTION,
    SAME,
    Entry,
    block_entries,
    convolution,
    dense_entries,
    flax_shapes,
    norm_entries,
    to_arrays,
    to_flax,
    to_tensors,
    to_torch,
)
from mbt_fast.checkpoint.shapes import Shape, block_owners, check_shapes, expected_shapes, shortened
from mbt_fast.config import MBTConfig
from mbt_fast.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray | Tensor  # a tensor where numpy lacks the dtype

_BOTTLENECK = "bottleneck"


def parameter_table(config: MBTConfig) -> list[Entry]:
    """Every parameter of ``MBT(config)`` with its official paths and layout.

    The official scheme knows two modalities: RGB has no suffix, the spectrogram has
    ``_spectrogram``; its CLS is ``clsspectrogram`` beside RGB and ``cls`` alone. Any other modality
    extends the scheme in the same way: suffix ``_{name}``, CLS ``cls{name}``. A shared encoder has
    the blocks without suffix.
    """
    entries: list[Entry] = []
    for m in config.modalities:
        suffix = _suffix(m)
        positions = f"Transformer/posembed_input{suffix}/pos_embedding"
        sampled = config.sampled_frames(m) is not None
        kernel = FRAME_CONVOLUTION if sampled else convolution(len(config.patch_size[m]))
        if config.n_cls:
            entries.append(Entry(f"embed.{m}.cls_token", (cls_path(m, config),), SAME))
        entries += [
            Entry(f"embed.{m}.pos_embed", (positions,), SAME),
            *dense_entries(f"embed.{m}.proj", f"embedding{suffix}", kernel),
        ]
    if config.n_slots:
        entries.append(Entry("bottleneck_tokens", (_BOTTLENECK,), SAME))
    for layer in range(config.num_layers):
        for owner in block_owners(config):
            path = f"Transformer/encoderblock_{layer}{_suffix(owner)}"
            entries += block_entries(f"blocks.{layer}.{owner}", path, config.num_heads)
    entries += norm_entries("norm", "Transformer/encoder_norm")
    entries += dense_entries("head", "output_projection")
    return entries


def cls_path(modality: str, config: MBTConfig) -> str:
    """Official name of a modality's CLS token: ``cls`` for RGB and for an only modality."""
    return "cls" if modality == "rgb" or len(config.modalities) == 1 else f"cls{modality}"


def _suffix(owner: str) -> str:
    return "" if owner in ("rgb", "shared") else f"_{owner}"


def scenic_shapes(config: MBTConfig) -> dict[str, Shape]:
    """Official paths and shapes of the parameters of ``config``."""
    return flax_shapes(parameter_table(config), expected_shapes(config))


def scenic_to_torch(params: "Mapping[str, Array]", config: MBTConfig) -> dict[str, Tensor]:
    """Convert official parameters to the state dict of ``MBT(config)``, exactly.

    Args:
        params: Arrays by official path, e.g. ``"Transformer/encoder_norm/scale"``. With
            ``use_bottleneck`` and one modality the official code makes a ``bottleneck`` that it
            never uses: it is dropped where ``config`` has one modality, and only there. Those of
            the AV-MAE fork are renamed, and its sines become positions.
        config: The model, see ``MBTConfig.from_scenic``.

    Returns:
        Contiguous CPU tensors with memory of their own and the dtype of the arrays, which for
        bfloat16 and 8-bit floats are tensors too.

    Raises:
        CheckpointError: Entries are missing, unexpected, misshapen, or not floating point.
    """
    if is_av_mae(params):
        params = with_official_names(params, config)
    unused = (_BOTTLENECK,) if len(config.modalities) == 1 else ()
    params = {path: array for path, array in params.items() if path not in unused}
    _check_classifier(params, config)
    check_shapes(params, scenic_shapes(config), "the scenic parameters do not fit the config")
    return to_torch(parameter_table(config), to_tensors(params))


def _check_classifier(params: "Mapping[str, Any]", config: MBTConfig) -> None:
    """Say which head is meant before a list of missing or unexpected CLS tokens does."""
    cls = [path for path in sorted(params) if path.startswith("cls") and "/" not in path]
    if cls and not config.n_cls:
        raise CheckpointError(
            f"classifier must be 'token' for weights with {' and '.join(cls)}, "
            f"got {config.classifier!r}"
        )
    if config.n_cls and not cls and any(path.startswith("embedding") for path in params):
        raise CheckpointError(
            "classifier must be 'gap' or 'gap_per_modality' for weights without a CLS token, "
            "got 'token'"
        )


def torch_to_scenic(
    state_dict: "Mapping[str, Tensor | None]", config: MBTConfig
) -> "dict[str, Array]":
    """Convert a state dict, or gradients by the same names, to official parameters, exactly.

    Args:
        state_dict: Tensors with the names and shapes of ``MBT(config)``. ``None``, the gradient of
            a parameter that the loss does not reach, is zero.
        config: The model.

    Returns:
        Arrays by official path, in the dtype of the tensors; tensors for bfloat16.

    Raises:
        CheckpointError: Entries are missing, unexpected, misshapen, or not floating point.
    """
    shapes = expected_shapes(config)
    tensors = _without_none(state_dict, shapes)
    check_shapes(tensors, shapes, "the weights do not fit the config")
    return to_arrays(to_flax(parameter_table(config), tensors))


def _without_none(
    tensors: "Mapping[str, Tensor | None]", shapes: Mapping[str, Shape]
) -> dict[str, Tensor]:
    """Zeros, in the dtype of the others, for each ``None`` that has a shape."""
    dtype = next((t.dtype for t in tensors.values() if t is not None), torch.float32)
    return {
        name: torch.zeros(shapes.get(name, ()), dtype=dtype) if tensor is None else tensor
        for name, tensor in tensors.items()
    }


def load_scenic(path: "str | PathLike[str]") -> "dict[str, Array]":
    """Read the parameters of an official checkpoint.

    Args:
        path: A flax msgpack file that holds the parameters at ``optimizer/target`` (the released
            checkpoints), ``optimizer/target/params`` or ``params``.

    Returns:
        Arrays by path, without a leading ``params/``; read-only views of the file's bytes, or
        tensors where numpy lacks the dtype.

    Raises:
        CheckpointError: The file is not such a container, or holds no parameters.
        OSError: The file cannot be read.
    """
    check_not_orbax(Path(path))
    try:
        tree = unpack(Path(path).read_bytes())
        return _flattened(_parameters(tree))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _parameters(tree: Any) -> Mapping[str, Any]:
    """The subtree of parameters in what a checkpoint holds."""
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"a checkpoint must be a mapping, got {type(tree).__name__}")
    optimizer = tree.get("optimizer")
    found = optimizer.get("target") if isinstance(optimizer, Mapping) else None
    found = tree.get("params") if found is None else found
    if isinstance(found, Mapping) and isinstance(found.get("params"), Mapping):
        found = found["params"]
    if not isinstance(found, Mapping) or not found:
        keys = shortened(tree) or "nothing"
        raise CheckpointError(
            f"a checkpoint must hold optimizer/target or params, got top-level keys: {keys}"
        )
    return found


def _flattened(tree: Mapping[str, Any]) -> "dict[str, Array]":
    """Leaves of nested mappings, their path joined by slashes."""
    flat = {}
    pending = [("", tree)]
    while pending:
        prefix, node = pending.pop()
        for key, value in node.items():
            path = f"{prefix}{key}"
            if isinstance(value, Mapping):
                pending.append((f"{path}/", value))
            elif hasattr(value, "shape"):
                flat[path] = value
            elif isinstance(value, Unreadable):
                raise CheckpointError(f"{path}: {value.reason}")
            else:
                raise CheckpointError(f"{path} must be an array, got {type(value).__name__}")
    return flat


def save_scenic(params: "Mapping[str, Array]", path: "str | PathLike[str]", step: int = 0) -> None:
    """Write parameters as a checkpoint that the official code restores, momentum at zero.

    Args:
        params: Arrays by official path, as ``torch_to_scenic`` returns them.
        path: The file; an existing one is replaced in one step.
        step: The training step that the file states.

    Raises:
        OSError: The file cannot be written.
    """
    import numpy as np

    momentum = {
        f"{name}/momentum": torch.zeros_like(a) if isinstance(a, Tensor) else np.zeros_like(a)
        for name, a in params.items()
    }
    tree = {
        "accum_train_time": 0,
        "global_step": np.int32(step),
        "model_state": {},
        "optimizer": {
            "state": {"param_states": _nested(momentum), "step": np.int32(step)},
            "target": _nested(params),
        },
        "rng": np.zeros(2, np.uint32),
    }
    with replacing(path) as temporary:
        temporary.write_bytes(pack(tree))


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of ``_flattened``."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
