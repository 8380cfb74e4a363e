"""Between numpy arrays and tensors: same values, same dtype, own memory."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mbt_fast.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

_DTYPES = ("float16", "float32", "float64")


def to_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copy arrays to CPU tensors of the same dtype.

    Raises:
        CheckpointError: A dtype is none of float16, float32, float64.
    """
    import numpy as np

    tensors = {}
    for name, array in arrays.items():
        dtype = getattr(getattr(array, "dtype", None), "name", type(array).__name__)
        if dtype not in _DTYPES:
            raise CheckpointError(f"{name} must be one of {', '.join(_DTYPES)}, got {dtype}")
        tensors[name] = torch.from_numpy(np.array(array, dtype=dtype, order="C"))
    return tensors


def to_arrays(tensors: Mapping[str, Tensor]) -> "dict[str, np.ndarray]":
    """Copy tensors, of any device and with or without gradient, to arrays of the same dtype.

    Raises:
        CheckpointError: A dtype is none of float16, float32, float64; numpy has no bfloat16.
    """
    arrays = {}
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise CheckpointError(f"{name} must be one of {', '.join(_DTYPES)}, got {dtype}")
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        arrays[name] = copy.copy_(tensor.detach()).numpy()
    return arrays
