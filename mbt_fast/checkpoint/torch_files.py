"""Files of ``torch.save``: the tensors that they hold by name, and nothing that could run."""

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from mbt_fast.checkpoint.shapes import shortened
from mbt_fast.errors import CheckpointError

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # .pth.tar; .ckpt is Lightning's

# Where training loops keep the weights, among optimizer state, epoch and arguments.
_PLACES = ("model", "state_dict", "model_state_dict", "module")


def read_torch(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file, on CPU: at top level or where training loops put them.

    Beside them may stand what does nothing when it is read: plain containers, an
    ``argparse.Namespace``, paths and numpy's scalars.

    Raises:
        CheckpointError: The file is malformed, holds objects of other classes, or no named tensors.
        OSError: The file cannot be read.
    """
    try:
        with safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, which is refused below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a malformed pickle may raise anything
        raise CheckpointError(f"{path}: {_reason(path, error)}") from error
    for key in _PLACES:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(map(torch.is_tensor, found.values())):
        raise CheckpointError(
            f"{path}: must hold tensors by name, alone or under {', '.join(_PLACES)}"
        )
    return {str(name): tensor.detach() for name, tensor in found.items()}


def _harmless() -> list[Any]:
    """Classes that are only filled with data: of arguments, paths and best scores."""
    paths = [(PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")]
    return [argparse.Namespace, *paths, *_numpy_scalars()]


def _numpy_scalars() -> list[Any]:
    try:
        import numpy as np
    except ImportError:  # then no file can hold one that could be read
        return []
    scalar = np.float64(0).__reduce__()[0]  # private, and moved in numpy 2
    return [
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        np.dtype,
        *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64")),
    ]


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read: the classes that it asks for, or what else it is."""
    if "TorchScript" in str(error):
        return "a TorchScript archive, which is not read; save its state dict with torch.save"
    try:
        with safe_globals(_harmless()):
            classes = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above; of the format before torch 1.6 the error names one class
        classes = re.findall(r"GLOBAL (\w[\w.]*\w) was not an allowed global", str(error))
    if not classes:
        return "not a whole file of tensors alone, and nothing else is loaded"
    return (
        f"holds objects of {shortened(classes)} beside tensors, which are not loaded; "
        "if you trust the file, save its state dict alone with torch.save, and convert that"
    )
