"""Conversions to and from floats of eight bits, which come in pairs, and to tf32."""

from functools import lru_cache

import numpy as np

from mbt_fast.testing.ptx.elements import ELEMENTS
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.floats import float_reader, packed_halves
from mbt_fast.testing.ptx.operands import reader, writer
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import Instruction

NAN = 0x7F


@op("cvt.rn.satfinite.e4m3x2", "cvt.rn.satfinite.e5m2x2")
def to_fp8(code: Instruction) -> Run:
    """Round two floats to the nearest, at most to the largest; the first is the upper byte."""
    kind, source = code.modifiers[2].removesuffix("x2"), code.modifiers[-1]
    put = writer(code.operands[0], "u16")
    if source not in ("f32", "f16x2"):
        raise PtxError(f"cvt.{'.'.join(code.modifiers)} is not implemented")
    take = [float_reader(code, operand, source) for operand in code.operands[1:]]

    def run(step: Step) -> None:
        values = [read(step) for read in take]
        if source == "f16x2":
            values = [values[0][..., 1], values[0][..., 0]]
        upper, lower = (rounded(step.full(value), kind).astype(np.uint16) for value in values)
        put(step, upper << np.uint16(8) | lower)

    return run


@op("cvt.rn.f16x2.e4m3x2", "cvt.rn.f16x2.e5m2x2")
def from_fp8(code: Instruction) -> Run:
    """Two floats of eight bits as a pair of float16, which is exact."""
    kind = code.modifiers[-1].removesuffix("x2")
    put, take = writer(code.operands[0], "u32"), reader(code.operands[1], "u16")

    def run(step: Step) -> None:
        pair = np.ascontiguousarray(step.full(take(step)))[..., None].view(np.uint8)
        halves = ELEMENTS[kind].values(pair).astype(np.float16)
        put(step, packed_halves(halves.view(np.uint16)))

    return run


@op("cvt.rna.tf32")
def to_tf32(code: Instruction) -> Run:
    """Round away 13 bits; ties go away from zero."""
    put, take = writer(code.operands[0], "u32"), reader(code.operands[1], "u32")

    def run(step: Step) -> None:
        bits = np.asarray(take(step))
        is_finite = bits & np.uint32(0x7F800000) != np.uint32(0x7F800000)
        nearest = bits + np.uint32(0x1000) & np.uint32(0xFFFFE000)
        put(step, np.where(is_finite, nearest, bits))

    return run


def rounded(values: Array, kind: str) -> Array:
    """Bits of the nearest floats of eight bits, uint8; ties go to the even one."""
    positive = _finite(kind)
    size = np.abs(np.asarray(values, np.float64))
    middle = (positive[:-1] + positive[1:]) / 2
    bits = np.searchsorted(middle, size, "left")
    tied = bits < len(middle)
    tied &= middle[np.minimum(bits, len(middle) - 1)] == size
    bits = bits + (tied & (bits % 2 == 1))
    bits = np.where(np.isnan(size), NAN, bits) | np.where(np.signbit(values), 0x80, 0)
    return bits.astype(np.uint8)


@lru_cache
def _finite(kind: str) -> Array:
    """All finite floats from zero up, float64."""
    values = ELEMENTS[kind].values(np.arange(128, dtype=np.uint8)).astype(np.float64)
    return values[np.isfinite(values)]
