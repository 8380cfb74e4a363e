"""Layouts: how tensors of a flax module lie in the parameters of the PyTorch one, both ways.

A layout is a pair of inverse functions that only permute and reshape, so a round trip is exact bit
for bit. ``Entry`` pairs a PyTorch name with its flax paths: a table of entries converts either way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mbt_fast.checkpoint.shapes import Shape, dtype_name
from mbt_fast.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

_NUMPY_DTYPES = ("float16", "float32", "float64")
_DTYPES = (*_NUMPY_DTYPES, "bfloat16")


@dataclass(frozen=True)
class Layout:
    """Two inverse functions between one PyTorch tensor and the flax tensors it is made of."""

    to_torch: Callable[[Sequence[Tensor]], Tensor]
    to_flax: Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Entry:
    """One parameter: its PyTorch name, its flax paths, and the layout between them."""

    name: str
    paths: tuple[str, ...]
    layout: Layout


def permuted(*dims: int) -> Layout:
    """One flax tensor with its axes in the order ``dims``."""
    inverse = tuple(dims.index(axis) for axis in range(len(dims)))
    return Layout(lambda flax: flax[0].permute(dims), lambda tensor: (tensor.permute(inverse),))


def convolution(axes: int) -> Layout:
    """Kernel ``(*sizes, in, out)`` to ``(out, in, *sizes)`` with ``axes`` sizes."""
    return permuted(axes + 1, axes, *range(axes))


# A kernel for frames one by one, (height, width, in, out), is that of tubelets of one frame.
FRAME_CONVOLUTION = Layout(
    lambda flax: flax[0].permute(3, 2, 0, 1).unsqueeze(2),
    lambda tensor: (tensor.squeeze(2).permute(2, 3, 1, 0),),
)
SAME = Layout(lambda flax: flax[0], lambda tensor: (tensor,))
DENSE = permuted(1, 0)


def qkv_weight(num_heads: int) -> Layout:
    """Query, key and value kernels ``(C, H, D)`` to the rows of one ``(3C, C)``."""
    return Layout(
        lambda flax: torch.cat([kernel.flatten(1).T for kernel in flax]),
        lambda tensor: tuple(w.T.unflatten(1, (num_heads, -1)) for w in tensor.chunk(3)),
    )


def qkv_bias(num_heads: int) -> Layout:
    """Query, key and value biases ``(H, D)`` to one ``(3C,)``."""
    return Layout(
        lambda flax: torch.cat([bias.flatten() for bias in flax]),
        lambda tensor: tuple(b.unflatten(0, (num_heads, -1)) for b in tensor.chunk(3)),
    )


def merged_heads(num_heads: int) -> Layout:
    """Output kernel ``(H, D, C)`` to ``(C, C)``."""
    return Layout(
        lambda flax: flax[0].flatten(0, 1).T,
        lambda tensor: (tensor.T.unflatten(0, (num_heads, -1)),),
    )


def dense_entries(name: str, path: str, kernel: Layout = DENSE) -> list[Entry]:
    """Weight and bias of a linear layer or, with another layout for the kernel, a convolution."""
    return [
        Entry(f"{name}.weight", (f"{path}/kernel",), kernel),
        Entry(f"{name}.bias", (f"{path}/bias",), SAME),
    ]


def norm_entries(name: str, path: str) -> list[Entry]:
    """Weight and bias of a LayerNorm."""
    return [
        Entry(f"{name}.weight", (f"{path}/scale",), SAME),
        Entry(f"{name}.bias", (f"{path}/bias",), SAME),
    ]


def block_entries(name: str, path: str, num_heads: int) -> list[Entry]:
    """A Transformer block with the module names of scenic, shared by its ViT and its MBT."""
    attention = f"{path}/MultiHeadDotProductAttention_0"
    qkv = [f"{attention}/{part}" for part in ("query", "key", "value")]
    kernels, biases = (tuple(f"{p}/{leaf}" for p in qkv) for leaf in ("kernel", "bias"))
    return [
        *norm_entries(f"{name}.norm1", f"{path}/LayerNorm_0"),
        Entry(f"{name}.attn.qkv.weight", kernels, qkv_weight(num_heads)),
        Entry(f"{name}.attn.qkv.bias", biases, qkv_bias(num_heads)),
        *dense_entries(f"{name}.attn.proj", f"{attention}/out", merged_heads(num_heads)),
        *norm_entries(f"{name}.norm2", f"{path}/LayerNorm_1"),
        *dense_entries(f"{name}.mlp.fc1", f"{path}/MlpBlock_0/Dense_0"),
        *dense_entries(f"{name}.mlp.fc2", f"{path}/MlpBlock_0/Dense_1"),
    ]


def to_torch(entries: Sequence[Entry], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous PyTorch parameters by name from flax tensors by path."""
    return {
        entry.name: entry.layout.to_torch([tensors[path] for path in entry.paths]).contiguous()
        for entry in entries
    }


def to_flax(entries: Sequence[Entry], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views by flax path of PyTorch parameters by name; inverse of ``to_torch``."""
    return {
        path: part
        for entry in entries
        for path, part in zip(entry.paths, entry.layout.to_flax(tensors[entry.name]), strict=True)
    }


def flax_shapes(entries: Sequence[Entry], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes by flax path from shapes by PyTorch name."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return {path: tuple(part.shape) for path, part in to_flax(entries, tensors).items()}


def to_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copy numpy arrays, and tensors of what numpy lacks, to CPU tensors of the same dtype.

    Raises:
        CheckpointError: A dtype of an array is none of float16, float32, float64.
    """
    return {name: _to_tensor(name, array) for name, array in arrays.items()}


def _to_tensor(name: str, array: Any) -> Tensor:
    import numpy as np

    if isinstance(array, Tensor) and array.is_floating_point():
        return array.clone()
    dtype = getattr(array, "dtype", None)
    _check_dtype(name, getattr(dtype, "name", type(array).__name__))
    return torch.from_numpy(np.array(array, dtype=array.dtype.name, order="C"))


def to_arrays(tensors: Mapping[str, Tensor]) -> "dict[str, np.ndarray | Tensor]":
    """Copy tensors, of any device and with or without gradient, to arrays of the same dtype.

    Raises:
        CheckpointError: A dtype is none of float16, float32, float64 and bfloat16. The last, which
            numpy lacks, stays a tensor.
    """
    arrays: dict[str, np.ndarray | Tensor] = {}
    for name, tensor in tensors.items():
        dtype = dtype_name(tensor.dtype)
        _check_dtype(name, dtype)
        copy = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        arrays[name] = copy.numpy() if dtype in _NUMPY_DTYPES else copy
    return arrays


def _check_dtype(name: str, dtype: str) -> None:
    if dtype not in _DTYPES:
        raise CheckpointError(f"{name} must be one of {', '.join(_DTYPES)}, got {dtype}")
