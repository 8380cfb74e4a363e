"""Elements of the matrices that mma and wgmma multiply: their bits, and the values of these."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mbt_fast.testing.ptx.floats import from_bf16
from mbt_fast.testing.ptx.step import Array


class Element(NamedTuple):
    """A type.

    Args:
        bits: How numpy sees one element.
        values: What elements are worth: float32 of floats, int32 of integers.
    """

    bits: Any
    values: Callable[[Array], Array]


def _from_f16(bits: Array) -> Array:
    return bits.view(np.float16).astype(np.float32)


def _from_tf32(bits: Array) -> Array:
    """The lowest 13 bits are not read."""
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def _from_e4m3(bits: Array) -> Array:
    return _E4M3[bits]


def _from_e5m2(bits: Array) -> Array:
    """The upper half of a float16."""
    return (bits.astype(np.uint16) << 8).view(np.float16).astype(np.float32)


def _all_of_e4m3() -> Array:
    """By bits: exponents are biased by 7, no value is infinite, and all ones are NaN."""
    bits = np.arange(256)
    exponent, fraction = bits >> 3 & 15, bits & 7
    size = np.where(exponent, (8 + fraction) * 2.0 ** (exponent - 10), fraction * 2.0**-9)
    size[(bits & 127) == 127] = np.nan
    return np.where(bits >> 7, -size, size).astype(np.float32)


_E4M3 = _all_of_e4m3()
ELEMENTS = {
    "bf16": Element(np.uint16, from_bf16),
    "f16": Element(np.uint16, _from_f16),
    "tf32": Element(np.uint32, _from_tf32),
    "e4m3": Element(np.uint8, _from_e4m3),
    "e5m2": Element(np.uint8, _from_e5m2),
    "s8": Element(np.uint8, lambda bits: bits.view(np.int8).astype(np.int32)),
    "u8": Element(np.uint8, lambda bits: bits.astype(np.int32)),
}
