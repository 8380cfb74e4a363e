"""The msgpack container of flax (``flax.serialization``): nested mappings with arrays as leaves.

An array is msgpack extension 1, itself msgpack: ``(shape, dtype name, row-major bytes)``. Extension
2 is a complex number, ``(real, imag)``; 3 a numpy scalar, packed like an array. An array of more
than ``MAX_CHUNK_BYTES`` is a mapping: ``__msgpack_chunked_array__`` is true, ``shape`` and
``chunks`` map ``"0"``, ``"1"``, ... to extents and to flat arrays. Nothing in it is ever executed.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mbt_fast.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

MAX_CHUNK_BYTES = 2**30  # flax's limit; msgpack's own is just below 2**32

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = frozenset(
    ["bool", "float16", "float32", "float64", "complex64", "complex128"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def unpack(data: bytes) -> Any:
    """Decode a container.

    Args:
        data: The whole file.

    Returns:
        The tree; arrays are read-only views of ``data``'s decoded parts.

    Raises:
        CheckpointError: The bytes are truncated, malformed, or hold an unknown dtype.
    """
    import msgpack

    try:
        return msgpack.unpackb(data, raw=False, ext_hook=_decoded, object_hook=_joined)
    except CheckpointError:
        raise
    except (*_MALFORMED, msgpack.UnpackException) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"not a whole flax msgpack file: {reason}") from error


def pack(tree: Any) -> bytes:
    """Encode nested mappings of arrays, numpy scalars and Python numbers; inverse of ``unpack``.

    Raises:
        TypeError: A leaf is none of these, or of a dtype such as bfloat16.
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
        raise CheckpointError(f"msgpack extension must be 1, 2 or 3, got {code}")
    array = _array_from_bytes(*msgpack.unpackb(data, raw=True))
    return array[()] if code == _SCALAR else array


def _array_from_bytes(shape: "tuple[int, ...]", dtype: bytes, buffer: bytes) -> "np.ndarray":
    import numpy as np

    name = dtype.decode("ascii", "replace")
    if name not in _DTYPES:
        raise CheckpointError(f"dtype of an array must be one that numpy has, got {name!r}")
    return _shaped(np.frombuffer(buffer, dtype=name), shape)


def _encoded(leaf: Any) -> Any:
    import msgpack
    import numpy as np

    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.name in _DTYPES:
        native = np.asarray(leaf, dtype=leaf.dtype.name)  # the name does not tell the byte order
        code = _ARRAY if isinstance(leaf, np.ndarray) else _SCALAR
        parts = (native.shape, native.dtype.name, native.tobytes("C"))
        return msgpack.ExtType(code, msgpack.packb(parts))
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
    return _shaped(np.concatenate(chunks), _in_order(node["shape"]))


def _shaped(array: "np.ndarray", shape: "Sequence[int]") -> "np.ndarray":
    if any(extent < 0 for extent in shape):  # numpy would infer it
        raise CheckpointError(f"shape of an array must not be negative, got {list(shape)}")
    return array.reshape(shape)


def _split(node: Any) -> Any:
    """A copy of the tree with large arrays in chunks."""
    import numpy as np

    if isinstance(node, Mapping):
        return {key: _split(value) for key, value in node.items()}
    if not isinstance(node, np.ndarray) or node.nbytes <= MAX_CHUNK_BYTES:
        return node
    flat = node.reshape(-1)
    step = max(1, MAX_CHUNK_BYTES // node.itemsize)
    chunks = [flat[start : start + step] for start in range(0, flat.size, step)]
    return {_CHUNKED: True, "shape": _numbered(node.shape), "chunks": _numbered(chunks)}


def _numbered(items: Any) -> "dict[str, Any]":
    return {str(index): item for index, item in enumerate(items)}


def _in_order(numbered: "Mapping[str, Any]") -> "list[Any]":
    return [numbered[str(index)] for index in range(len(numbered))]
