"""Float operands: half types, pairs of them, and subnormal numbers flushed to zero."""

from typing import Any

import numpy as np

from mbt_fast.testing.ptx.operands import NUMPY, Read, Write, reader, writer
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import Instruction, Operand

FLOATS = ("f16", "bf16", "f32", "f64", "f16x2", "bf16x2", "tf32")
SMALLEST_NORMAL = np.float32(2.0**-126)


def is_float(kind: str) -> bool:
    """Whether a type is one of floats, or of pairs of them."""
    return kind in FLOATS


def from_bf16(bits: Any) -> Array:
    """float32 of the bits of bfloat16."""
    return (np.asarray(bits, np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(value: Any) -> Array:
    """Bits of bfloat16, uint16, of float32 or float64 values; rounded once, ties to even."""
    value = np.asarray(value)
    single = value.astype(np.float32)
    if value.dtype == np.float64:
        single = _rounded_to_odd(value, single)
    bits = single.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.where(np.isnan(single), np.uint32(0x7FFF0000), rounded)
    return (rounded >> np.uint32(16)).astype(np.uint16)


def _rounded_to_odd(value: Array, single: Array) -> Array:
    """Float32 whose last bit says whether float64 was cut, so that it may be rounded again."""
    too_far = np.abs(single.astype(np.float64)) > np.abs(value)
    bits = single.view(np.uint32)
    toward_zero = np.where(too_far, bits - np.uint32(1), bits)
    inexact = single.astype(np.float64) != value
    finite = np.isfinite(single)
    return np.where(inexact & finite, toward_zero | np.uint32(1), bits).view(np.float32)


def flushed(value: Any) -> Array:
    """Float32 with subnormal numbers as zeros of the same sign."""
    value = np.asarray(value, np.float32)
    return np.where(np.abs(value) < SMALLEST_NORMAL, np.copysign(np.float32(0), value), value)


def float_reader(code: Instruction, operand: Operand, kind: str | None = None) -> Read:
    """Read an operand of a float type as floats; pairs as ``[n, 32, 2]``."""
    kind = kind or code.type
    take = reader(operand, kind)
    if kind == "bf16":
        return lambda step: from_bf16(take(step))
    if kind == "f16x2":
        return lambda step: halves_of(take(step)).view(np.float16)
    if kind == "bf16x2":
        return lambda step: from_bf16(halves_of(take(step)))
    if code.has("ftz") and kind == "f32":
        return lambda step: flushed(take(step))
    return take


def float_writer(code: Instruction, kind: str | None = None) -> Write:
    """Write floats to the first operand, rounded to its type."""
    kind = kind or code.type
    put = writer(code.operands[0], kind)
    if kind == "bf16":
        return lambda step, value: put(step, to_bf16(value))
    if kind in ("f16x2", "bf16x2"):
        rounded = to_bf16 if kind == "bf16x2" else _to_f16_bits
        return lambda step, value: put(step, packed_halves(rounded(value)))
    if kind == "f16":
        return lambda step, value: put(step, np.asarray(value).astype(np.float16))
    flush = code.has("ftz") and kind == "f32"
    saturate = code.has("sat")
    if not (flush or saturate):
        return put

    def finish(step: Step, value: Any) -> None:
        if saturate:
            value = np.fmin(np.fmax(value, 0), 1)
        value = np.asarray(value).astype(NUMPY[kind])
        put(step, flushed(value) if flush else value)

    return finish


def _to_f16_bits(value: Any) -> Array:
    return np.asarray(value).astype(np.float16).view(np.uint16)


def halves_of(word: Any) -> Array:
    """uint16 ``[..., 2]`` of uint32, low half first."""
    word = np.asarray(word, np.uint32)
    return np.stack([word & np.uint32(0xFFFF), word >> np.uint32(16)], -1).astype(np.uint16)


def packed_halves(halves: Array) -> Array:
    """uint32 of uint16 ``[..., 2]``, low half first."""
    halves = halves.astype(np.uint32)
    return halves[..., 0] | halves[..., 1] << np.uint32(16)
