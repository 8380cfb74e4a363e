"""Tensor maps: what the copy engine knows of a tensor in global memory.

The driver's 128 bytes are its secret. Here they hold the arguments of cuTensorMapEncodeTiled, so
that a kernel finds them where it takes a map. Requirements are those of that function.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mbt_fast.testing.ptx.descriptor import CHUNK_BYTES, swizzled

BYTES = 128
MAX_RANK = 5
MAGIC = 0x4D42
# By CUtensorMapDataType.
ELEMENT_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 8, 9: 2, 10: 4}
FLOAT_TYPES = frozenset({6, 7, 8, 9, 10})
SWIZZLE_BYTES = (16, 32, 64, 128)  # by CUtensorMapSwizzle
# Magic, type, rank, interleave, swizzle, promotion, fill; base; strides; sizes - 1; box - 1; steps.
# The same as a C struct in this order without gaps; sizes of 2^32 and boxes of 256 fit, less one.
FORMAT = struct.Struct("<H6BQ4Q5I5B5B")

# Where fields of tensormap.replace lie in what FORMAT unpacks, and what is stored of a new value.
FIELDS = {
    "elemtype": 1,
    "rank": 2,
    "interleave_layout": 3,
    "swizzle_mode": 4,
    "fill_mode": 6,
    "global_address": 7,
    "global_stride": 8,
    "global_dim": 12,
    "box_dim": 17,
    "element_stride": 22,
}
STORED_LESS_ONE = ("global_dim", "box_dim")
ELEMENT_TYPES = (0, 1, 2, 3, 4, 5, 6, 7, 10, 8, 9)  # CUtensorMapDataType by elemtype


@dataclass(frozen=True)
class TensorMap:
    """Arguments of cuTensorMapEncodeTiled, the first dimension being the contiguous one.

    Args:
        data_type: A CUtensorMapDataType.
        base: Address of element 0.
        sizes: Elements in each of 1 to 5 dimensions.
        strides: Bytes from one element to the next, in all dimensions but the first.
        box: Elements that one copy takes in each dimension.
        steps: Every how manieth element of the box is taken.
        interleave: A CUtensorMapInterleave.
        swizzle: A CUtensorMapSwizzle.
        promotion: A CUtensorMapL2promotion, which changes no value.
        fill: A CUtensorMapFloatOOBfill.
    """

    data_type: int
    base: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    interleave: int = 0
    swizzle: int = 0
    promotion: int = 0
    fill: int = 0

    @property
    def element_bytes(self) -> int:
        """Size of an element."""
        return ELEMENT_BYTES[self.data_type]

    @property
    def box_bytes(self) -> int:
        """What a copy brings to shared memory, elements outside the tensor included."""
        return int(np.prod(self.box)) * self.element_bytes


def encode(
    data_type: int,
    base: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    steps: Sequence[int],
    interleave: int = 0,
    swizzle: int = 0,
    promotion: int = 0,
    fill: int = 0,
) -> bytes:
    """Pack a map into 128 bytes; arguments as in ``TensorMap``.

    Raises:
        ValueError: cuTensorMapEncodeTiled would refuse an argument, or the executor does not know
            it: interleaved layouts, steps other than 1, fills other than zero.
    """
    modes = interleave, swizzle, promotion, fill
    shape = tuple(sizes), tuple(strides), tuple(box), tuple(steps)
    check(TensorMap(data_type, base, *shape, *modes))
    rank = len(sizes)
    ones = [1] * (MAX_RANK - rank)
    packed = FORMAT.pack(
        *(MAGIC, data_type, rank, *modes, base),
        *[*strides, *([0] * (MAX_RANK - rank))],
        *(size - 1 for size in [*sizes, *ones]),
        *(side - 1 for side in [*box, *ones]),
        *[*steps, *ones],
    )
    return packed.ljust(BYTES, b"\0")


def decode(packed: bytes) -> TensorMap:
    """Unpack what ``encode`` packed.

    Raises:
        ValueError: These bytes are no tensor map, or one that cannot be used.
    """
    magic, data_type, rank, *rest = FORMAT.unpack(packed[: FORMAT.size])
    if len(packed) != BYTES or magic != MAGIC:
        raise ValueError("a tensor map must come from the encoder, got other bytes")
    *modes, base = rest[:5]
    strides, sizes, box, steps = rest[5:9], rest[9:14], rest[14:19], rest[19:24]
    made = TensorMap(
        *(data_type, base),
        *(tuple(size + 1 for size in sizes[:rank]), tuple(strides[: rank - 1])),
        *(tuple(side + 1 for side in box[:rank]), tuple(steps[:rank])),
        *modes,
    )
    check(made)  # it may have been put together field by field
    return made


def replaced(packed: bytes, field: str, ordinal: int, value: int) -> bytes:
    """A map of which a field is changed; one of zeros becomes a map.

    Args:
        packed: The map.
        field: By its name in tensormap.replace.
        ordinal: Which dimension, of fields that each has.
        value: The field's new value, as tensormap.replace takes it.

    Raises:
        ValueError: The field cannot hold the value.
    """
    fields = list(FORMAT.unpack(packed[: FORMAT.size]))
    fields[0] = MAGIC
    if field == "elemtype":
        if value >= len(ELEMENT_TYPES):
            raise ValueError(f"elements of type {value} are not implemented")
        value = ELEMENT_TYPES[value]
    value += (field == "rank") - (field in STORED_LESS_ONE)
    fields[FIELDS[field] + ordinal] = value
    try:
        return FORMAT.pack(*fields).ljust(BYTES, b"\0")
    except struct.error:
        raise ValueError(f"{field} of a tensor map cannot be {value}") from None


def check(tensor: TensorMap) -> None:
    """Refuse what cuTensorMapEncodeTiled refuses, and what the executor does not know."""
    rank = len(tensor.sizes)

    def must(holds: bool, requirement: str, value: object) -> None:
        if not holds:
            raise ValueError(f"a tensor map must {requirement}, got {value}")

    must(tensor.data_type in ELEMENT_BYTES, "have a known data type", tensor.data_type)
    must(1 <= rank <= MAX_RANK, f"have 1 to {MAX_RANK} dimensions", rank)
    lengths = len(tensor.strides) + 1, len(tensor.box), len(tensor.steps)
    must(lengths == (rank,) * 3, "have strides, box and steps for its dimensions", lengths)
    must(tensor.interleave == 0, "not be interleaved", tensor.interleave)
    must(tensor.fill == 0, "fill with zeros", tensor.fill)
    must(all(step == 1 for step in tensor.steps), "have steps of 1", tensor.steps)
    must(tensor.base % 16 == 0, "begin at a multiple of 16 bytes", tensor.base)
    must(all(1 <= n <= 2**32 for n in tensor.sizes), "have sizes of 1 to 2^32", tensor.sizes)
    strides_fit = all(0 < s < 2**40 and s % 16 == 0 for s in tensor.strides)
    must(strides_fit, "have strides below 2^40 that are multiples of 16 bytes", tensor.strides)
    must(all(1 <= side <= 256 for side in tensor.box), "have a box of 1 to 256", tensor.box)
    width = tensor.box[0] * tensor.element_bytes
    must(width % 16 == 0, "have a box whose rows are multiples of 16 bytes", width)
    must(0 <= tensor.swizzle < len(SWIZZLE_BYTES), "have a known swizzle", tensor.swizzle)
    limit = SWIZZLE_BYTES[tensor.swizzle]
    must(tensor.swizzle == 0 or width == limit, f"have rows of {limit} bytes to swizzle", width)


def box_elements(tensor: TensorMap, corner: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Addresses of a box in global memory, in the order in which it fills shared memory.

    Args:
        tensor: The map.
        corner: Coordinates of the box's first element; they may lie outside the tensor.

    Returns:
        int64 ``[elements]``: addresses; bool ``[elements]``: which of them lie in the tensor. The
        others read as zero and are not written.
    """
    address, inside = np.full((), tensor.base, np.int64), np.full((), True)
    strides = tensor.element_bytes, *tensor.strides
    for first, side, size, stride in zip(corner, tensor.box, tensor.sizes, strides, strict=True):
        index = first + np.arange(side, dtype=np.int64)
        along = (-1, *(1,) * address.ndim)  # the next dimension is the slower one
        address = (index * stride).reshape(along) + address
        inside = ((index >= 0) & (index < size)).reshape(along) & inside
    return address.ravel(), np.broadcast_to(inside, address.shape).ravel()


def box_chunks(tensor: TensorMap, start: int) -> np.ndarray:
    """Addresses in shared memory of a box's 16-byte chunks, in the order of ``box_elements``.

    Rows of a box are as long as the swizzle permutes, or nothing is swizzled.

    Args:
        tensor: The map.
        start: Where the box begins.

    Returns:
        int64 ``[box_bytes / 16]``.
    """
    offsets = np.arange(0, tensor.box_bytes, CHUNK_BYTES, dtype=np.int64)
    return swizzled(start + offsets, SWIZZLE_BYTES[tensor.swizzle])
