"""Conversions between types."""

from typing import Any

import numpy as np

from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.floats import float_reader, float_writer, is_float
from mbt_fast.testing.ptx.operands import NUMPY, reader, writer
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Step
from mbt_fast.testing.ptx.syntax import Instruction

ROUND: dict[str, Any] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
DIRECTED = ("rz", "rm", "rp", "rna", "rs")


@op("cvt")
def cvt(code: Instruction) -> Run:
    """Convert from the second type to the first."""
    to, source = code.types[0], code.types[-1]
    if any(code.has(mode) for mode in DIRECTED) and is_float(to):
        raise PtxError("only rounding to the nearest is implemented")
    if to in ("f16x2", "bf16x2"):
        return _pack(code, to)
    take = _reader(code, source)
    if is_float(to):
        put = float_writer(code, to)
        rounding = next((ROUND[m] for m in code.modifiers if m in ROUND), None)
        if rounding is not None:
            return lambda step: put(step, rounding(take(step)))
        if is_float(source) and NUMPY.get(to) in (np.float32, np.float64):
            as_type = NUMPY[to]
            return lambda step: put(step, np.asarray(take(step)).astype(as_type))
        if is_float(source):
            return lambda step: put(step, take(step))
        return _from_integer(code, to, source)
    if is_float(source):
        return _to_integer(code, to, source)
    put = writer(code.operands[0], to)
    if code.has("sat"):
        low, high = np.iinfo(NUMPY[to]).min, np.iinfo(NUMPY[to]).max
        return lambda step: put(step, np.clip(take(step), low, high).astype(NUMPY[to]))
    as_type = NUMPY[to]
    return lambda step: put(step, np.asarray(take(step)).astype(as_type))


def _reader(code: Instruction, kind: str) -> Any:
    operand = code.operands[1]
    return float_reader(code, operand, kind) if is_float(kind) else reader(operand, kind)


def _pack(code: Instruction, to: str) -> Run:
    """Two floats to a pair; the first source is the upper half."""
    put = float_writer(code, to)
    high, low = (float_reader(code, operand, "f32") for operand in code.operands[1:3])
    relu = code.has("relu")

    def run(step: Step) -> None:
        pair = np.stack([step.full(low(step)), step.full(high(step))], -1)
        put(step, np.maximum(pair, 0) if relu else pair)

    return run


def _from_integer(code: Instruction, to: str, source: str) -> Run:
    put, take = float_writer(code, to), reader(code.operands[1], source)
    wide = np.float32 if to == "f32" else np.float64
    return lambda step: put(step, np.asarray(take(step)).astype(wide))


def _to_integer(code: Instruction, to: str, source: str) -> Run:
    """Round, and clamp to the range of the type; NaN gives zero."""
    put, take = writer(code.operands[0], to), float_reader(code, code.operands[1], source)
    rounding = next(ROUND[m] for m in code.modifiers if m in ROUND)
    limits = np.iinfo(NUMPY[to])

    def run(step: Step) -> None:
        value = rounding(np.asarray(take(step), np.float64))
        inside = np.clip(np.nan_to_num(value, nan=0.0), float(limits.min), float(limits.max))
        top = inside >= float(limits.max)
        whole = np.where(top, 0, inside).astype(NUMPY[to])
        put(step, np.where(top, limits.max, whole).astype(NUMPY[to]))

    return run


@op("cvta")
def cvta(code: Instruction) -> Run:
    """Global and parameter addresses are generic ones already."""
    if not (code.has("global") or code.has("param") or code.has("const")):
        raise PtxError("only cvta of global, const and param addresses is implemented")
    put, take = writer(code.operands[0], code.type), reader(code.operands[1], code.type)
    return lambda step: put(step, take(step))
