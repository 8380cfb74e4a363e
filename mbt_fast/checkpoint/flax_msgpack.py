"""The msgpack container of flax (``flax.serialization``): nested mappings with arrays as leaves.

An array is msgpack extension 1, itself msgpack: ``(shape, dtype name, row-major bytes)``. Extension
2 is a complex number, ``(real, imag)``; 3 a numpy scalar, packed like an array. An array of more
than ``MAX_CHUNK_BYTES`` is a mapping: ``__msgpack_chunked_array__`` is true, ``shape`` and
``chunks`` map ``"0"``, ``"1"``, ... to extents and to flat arrays. Nothing in it is ever executed.

Arrays of bfloat16 and of 8-bit floats, which numpy lacks, are torch tensors, bit for bit. What
cannot be read is ``Unreadable``: it matters only if it is needed, and optimizer state is not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbt_fast.checkpoint.shapes import dtype_name
from mbt_fast.errors import CheckpointError

MAX_CHUNK_BYTES = 2**30  # flax's limit; msgpack's own is just below 2**32

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = frozenset(
    ["bool", "float16", "float32", "float64", "complex64", "complex128"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
_TORCH_DTYPES = {
    name: getattr(torch, name)
    for name in (
        *("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
        "float8_e8m0fnu",
    )
}
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Unreadable:
    """A leaf of an extension or a dtype that is not known."""

    reason: str


def unpack(data: bytes) -> Any:
    """Decode a container.

    Args:
        data: The whole file.

    Returns:
        The tree. Arrays are read-only views of ``data``'s decoded parts, or tensors.

    Raises:
        CheckpointError: The bytes are truncated or malformed.
    """
    import msgpack

    hooks = {"ext_hook": _decoded, "object_hook": _joined}
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, **hooks)
    except CheckpointError:
        raise
    except (*_MALFORMED, msgpack.UnpackException) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"not a whole flax msgpack file: {reason}") from error


def pack(tree: Any) -> bytes:
    """Encode nested mappings of arrays, tensors, and numbers of numpy and Python.

    The inverse of ``unpack``.

    Raises:
        TypeError: A leaf is none of these.
    """
    import msgpack

    encoded: bytes = msgpack.packb(_split(tree), default=_encoded, strict_types=True)
    return encoded


def _decoded(code: int, data: bytes) -> Any:
    import msgpack

    if code == _COMPLEX:
        real, imag = msgpack.unpackb(data)
        return complex(real, imag)
    if code not in (_ARRAY, _SCALAR):
        return Unreadable(f"msgpack extension must be 1, 2 or 3, got {code}")
    array = _array_from_bytes(*msgpack.unpackb(data, raw=True))
    return array if code == _ARRAY or isinstance(array, Unreadable) else array[()]


def _array_from_bytes(shape: "tuple[int, ...]", dtype: bytes, buffer: bytes) -> Any:
    import numpy as np

    name = dtype.decode("ascii", "replace")
    if name in _TORCH_DTYPES:
        octets = torch.empty(len(buffer), dtype=torch.uint8)
        octets.numpy()[:] = np.frombuffer(buffer, np.uint8)
        return _shaped(octets.view(_TORCH_DTYPES[name]), shape)
    if name not in _DTYPES:
        return Unreadable(f"dtype of an array must be one that numpy or torch has, got {name!r}")
    return _shaped(np.frombuffer(buffer, dtype=name), shape)


def _encoded(leaf: Any) -> Any:
    import msgpack
    import numpy as np

    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.name in _DTYPES:
        native = np.asarray(leaf, dtype=leaf.dtype.name)  # the name does not tell the byte order
        code = _ARRAY if isinstance(leaf, np.ndarray) else _SCALAR
        parts = (native.shape, native.dtype.name, native.tobytes("C"))
        return msgpack.ExtType(code, msgpack.packb(parts))
    if isinstance(leaf, Tensor) and dtype_name(leaf.dtype) in _TORCH_DTYPES:
        octets = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        parts = (tuple(leaf.shape), dtype_name(leaf.dtype), octets.numpy().tobytes())
        return msgpack.ExtType(_ARRAY, msgpack.packb(parts))
    if isinstance(leaf, complex):
        return msgpack.ExtType(_COMPLEX, msgpack.packb((leaf.real, leaf.imag)))
    kind = getattr(leaf, "dtype", type(leaf).__name__)
    raise TypeError(f"a leaf must be a number or a numeric array, got {kind}")


def _joined(node: "dict[str, Any]") -> Any:
    """The array of a chunked one; any other mapping as it is."""
    if _CHUNKED not in node:
        return node
    import numpy as np

    chunks = _in_order(node["chunks"])
    for chunk in chunks:
        if isinstance(chunk, Unreadable):
            return chunk
    whole = torch.cat(chunks) if isinstance(chunks[0], Tensor) else np.concatenate(chunks)
    return _shaped(whole, _in_order(node["shape"]))


def _shaped(array: Any, shape: "Sequence[int]") -> Any:
    """An array or tensor in its shape."""
    if any(extent < 0 for extent in shape):  # numpy would infer it
        raise CheckpointError(f"shape of an array must not be negative, got {list(shape)}")
    return array.reshape(shape)


def _split(node: Any) -> Any:
    """A copy of the tree with large arrays in chunks."""
    import numpy as np

    if isinstance(node, Mapping):
        return {key: _split(value) for key, value in node.items()}
    if not isinstance(node, np.ndarray | Tensor) or node.nbytes <= MAX_CHUNK_BYTES:
        return node
    flat = node.reshape(-1)
    step = max(1, MAX_CHUNK_BYTES // node.itemsize)
    chunks = [flat[start : start + step] for start in range(0, len(flat), step)]
    return {_CHUNKED: True, "shape": _numbered(node.shape), "chunks": _numbered(chunks)}


def _numbered(items: Any) -> "dict[str, Any]":
    return {str(index): item for index, item in enumerate(items)}


def _in_order(numbered: "Mapping[str, Any]") -> "list[Any]":
    return [numbered[str(index)] for index in range(len(numbered))]
