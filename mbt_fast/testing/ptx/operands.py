"""Functions that read and write operands, made once for each instruction."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import (
    SIZES,
    Immediate,
    Operand,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)

Read = Callable[[Step], Any]
Write = Callable[[Step, Any], None]

# How numpy sees the types. bf16 and packed pairs are bits.
NUMPY: dict[str, Any] = {
    "pred": np.bool_,
    **dict.fromkeys(("b8", "u8", "e4m3", "e5m2"), np.uint8),
    **dict.fromkeys(("b16", "u16", "bf16"), np.uint16),
    **dict.fromkeys(("b32", "u32", "f16x2", "bf16x2"), np.uint32),
    **dict.fromkeys(("b64", "u64"), np.uint64),
    **{f"s{8 * size}": np.dtype(f"i{size}").type for size in (1, 2, 4, 8)},
    "f16": np.float16,
    "f32": np.float32,
    "tf32": np.float32,
    "f64": np.float64,
}
WIDTHS = {"b16": 2, "b32": 4, "b64": 8}
UNSIGNED = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}


def reader(operand: Operand, kind: str) -> Read:
    """A function that reads an operand as a type: ``[n, 32]``, or a scalar that is the same in all.

    A register that is wider than the type is cut.
    """
    if isinstance(operand, Register):
        return _register_reader(operand, kind)
    if isinstance(operand, Immediate):
        value = immediate(operand, kind)
        return lambda step: value
    if isinstance(operand, Special):
        return _special_reader(operand, kind)
    if isinstance(operand, Symbol):
        return _symbol_reader(operand, kind)
    raise PtxError(f"cannot read {operand} as {kind}")


def readers(operand: Operand, kind: str) -> list[Read]:
    """One function for each part of a vector."""
    parts = operand.parts if isinstance(operand, Vector) else (operand,)
    return [reader(part, kind) for part in parts]


def writer(operand: Operand, kind: str) -> Write:
    """A function that writes an operand, where threads are active.

    A register that is wider than the type takes its sign or zeros.
    """
    if isinstance(operand, Sink):
        return lambda step, value: None
    if isinstance(operand, Vector) and len(operand.parts) == 1:
        return writer(operand.parts[0], kind)
    if not isinstance(operand, Register):
        raise PtxError(f"the destination must be a register, got {operand}")
    file, index = _file(operand, kind), operand.number
    as_type = NUMPY[kind]

    def write(step: Step, value: Any) -> None:
        target = step.files[file][index]
        if step.mask is None:
            target[step.at] = value
        else:
            target[step.at] = np.where(step.mask, value, target[step.at])

    if kind != "pred" and NUMPY[file] is not as_type:
        # numpy extends by the sign of the narrow type
        wide = NUMPY[file]
        return lambda step, value: write(step, np.asarray(value, as_type).astype(wide))
    return write


def writers(operand: Operand, kind: str) -> list[Write]:
    """One function for each part of a vector."""
    parts = operand.parts if isinstance(operand, Vector) else (operand,)
    return [writer(part, kind) for part in parts]


def immediate(operand: Immediate, kind: str) -> Any:
    """A number as a numpy scalar of a type."""
    if kind == "pred":
        return np.bool_(operand.value != 0)
    value, size = operand.value, SIZES[kind]
    if operand.float_bytes == 8 and size == 4:
        value = int(np.uint64(value).view(np.float64).astype(np.float32).view(np.uint32))
    elif operand.float_bytes == 4 and size == 8:
        value = int(np.uint32(value).view(np.float32).astype(np.float64).view(np.uint64))
    bits = (value % 256**size).to_bytes(size, "little")
    return np.frombuffer(bits, NUMPY[kind])[0]


def _file(register: Register, kind: str) -> str:
    """The view of a register's class that is written as a type."""
    if kind == "pred" or register.kind == "pred":
        if kind != register.kind:
            raise PtxError(f"{register.name} is {register.kind}, and {kind} is asked for")
        return "pred"
    have, need = WIDTHS[register.kind], SIZES[kind]
    if need > have:
        raise PtxError(f"{register.name} has {have} bytes, and {kind} needs {need}")
    if need < have:
        return ("s" if kind.startswith("s") else "u") + str(8 * have)
    return _FILE_OF[NUMPY[kind]]


FILES = ("pred", "u16", "s16", "f16", "u32", "s32", "f32", "u64", "s64", "f64")
_FILE_OF = {NUMPY[kind]: kind for kind in FILES}


def _register_reader(register: Register, kind: str) -> Read:
    file, index = _file(register, kind), register.number
    if kind == "pred":
        if register.negated:
            return lambda step: ~step.files["pred"][index][step.at]
        return lambda step: step.files["pred"][index][step.at]
    if SIZES[kind] < WIDTHS[register.kind]:
        bits, as_type = NUMPY[UNSIGNED[SIZES[kind]]], NUMPY[kind]
        wide = UNSIGNED[WIDTHS[register.kind]]
        return lambda step: step.files[wide][index][step.at].astype(bits).view(as_type)
    return lambda step: step.files[file][index][step.at]


def _special_reader(special: Special, kind: str) -> Read:
    name, as_type = special.name, NUMPY[kind]

    def read(step: Step) -> Array:
        return step.blocks.special(name, step).astype(as_type)

    return read


def _symbol_reader(symbol: Symbol, kind: str) -> Read:
    """The address of a variable."""
    name, as_type = symbol.name, NUMPY[kind]
    return lambda step: as_type(step.blocks.address_of(name))
