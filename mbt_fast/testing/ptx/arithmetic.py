"""Arithmetic on integers and floats, comparison and selection."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mbt_fast.testing.ptx.floats import float_reader, float_writer, is_float
from mbt_fast.testing.ptx.operands import NUMPY, Read, reader, writer
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import SIZES, Instruction, Operand, Pair

Function = Callable[..., Any]


def elementwise(code: Instruction, function: Function, kind: str | None = None) -> Run:
    """``d = function(a, b, ...)``, all of one type."""
    kind = kind or code.type
    put = float_writer(code) if is_float(kind) else writer(code.operands[0], kind)
    take = [_source(code, operand, kind) for operand in code.operands[1:]]
    if len(take) == 1:
        (first,) = take
        return lambda step: put(step, function(first(step)))
    if len(take) == 2:
        first, second = take
        return lambda step: put(step, function(first(step), second(step)))
    return lambda step: put(step, function(*[read(step) for read in take]))


def _source(code: Instruction, operand: Operand, kind: str) -> Read:
    return float_reader(code, operand) if is_float(kind) else reader(operand, kind)


@op("add")
def add(code: Instruction) -> Run:
    """Sum; integers wrap around."""
    return elementwise(code, np.add)


@op("sub")
def sub(code: Instruction) -> Run:
    """Difference."""
    return elementwise(code, np.subtract)


@op("neg")
def neg(code: Instruction) -> Run:
    """Negative."""
    return elementwise(code, np.negative)


@op("abs")
def absolute(code: Instruction) -> Run:
    """Absolute value."""
    return elementwise(code, np.abs)


@op("copysign")
def copysign(code: Instruction) -> Run:
    """The second operand with the sign of the first."""
    return elementwise(code, lambda sign, size: np.copysign(size, sign))


@op("min", "max")
def extreme(code: Instruction) -> Run:
    """Smaller or larger; of a number and NaN the number, with ``.NaN`` NaN."""
    larger = code.opcode == "max"
    if is_float(code.type) and not code.has("NaN"):
        return elementwise(code, np.fmax if larger else np.fmin)
    return elementwise(code, np.maximum if larger else np.minimum)


@op("mul")
def mul(code: Instruction) -> Run:
    """Product: low half, high half, or the whole in twice the width."""
    if is_float(code.type):
        return elementwise(code, np.multiply)
    if code.has("lo"):
        return elementwise(code, np.multiply)
    product, out = _wide_product(code)
    put = writer(code.operands[0], out)
    return lambda step: put(step, product(step))


@op("mad")
def mad(code: Instruction) -> Run:
    """``a * b + c`` of integers; of floats it is ``fma``."""
    if is_float(code.type):
        return fma(code)
    if code.has("lo"):
        return elementwise(code, lambda a, b, c: a * b + c)
    product, out = _wide_product(code)
    put, addend = writer(code.operands[0], out), reader(code.operands[3], out)
    return lambda step: put(step, product(step) + addend(step))


def _wide_product(code: Instruction) -> tuple[Read, str]:
    """The product of ``mul.wide`` or ``mul.hi``, and its type."""
    kind = code.type
    bits = 8 * SIZES[kind]
    first, second = (reader(operand, kind) for operand in code.operands[1:3])
    if code.has("wide"):
        out = f"{kind[0]}{2 * bits}"
        wide = NUMPY[out]
        return lambda step: np.multiply(first(step), second(step), dtype=wide), out
    if bits == 64:
        high = _high_signed if kind[0] == "s" else _high_unsigned
        return lambda step: high(first(step), second(step)), kind
    wide, narrow = NUMPY[f"{kind[0]}{2 * bits}"], NUMPY[kind]

    def product(step: Step) -> Array:
        return (np.multiply(first(step), second(step), dtype=wide) >> bits).astype(narrow)

    return product, kind


def _high_unsigned(a: Any, b: Any) -> Array:
    """Upper 64 of the 128 bits of a product."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    a_low, a_high, b_low, b_high = a & low, a >> half, b & low, b >> half
    middle = a_high * b_low + (a_low * b_low >> half)
    other = a_low * b_high + (middle & low)
    return a_high * b_high + (middle >> half) + (other >> half)


def _high_signed(a: Any, b: Any) -> Array:
    high = _high_unsigned(a.view(np.uint64), b.view(np.uint64)).view(np.int64)
    return high - np.where(a < 0, b, 0) - np.where(b < 0, a, 0)


@op("fma")
def fma(code: Instruction) -> Run:
    """``a * b + c`` by way of float64, in which the product is exact."""
    kind = code.type
    put = float_writer(code)
    a, b, c = (float_reader(code, operand) for operand in code.operands[1:4])
    if kind == "f64":
        return lambda step: put(step, _fused(a(step), b(step), c(step)))
    relu = code.has("relu")

    def run(step: Step) -> None:
        total = np.multiply(a(step), b(step), dtype=np.float64)
        total = total + c(step)
        put(step, np.fmax(total, 0) if relu else total)

    return run


def _fused(a: Any, b: Any, c: Any) -> Array:
    """``a * b + c`` of float64, but for a last rounding: errors of product and sum are added."""
    product = np.multiply(a, b)
    total = product + c
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    lost = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
    other = total - product
    lost = lost + ((product - (total - other)) + (c - other))
    return np.where(np.isfinite(lost), total + lost, total)


def _split(value: Any) -> tuple[Array, Array]:
    """Two halves of a float64 whose products are exact."""
    scaled = np.multiply(value, 2.0**27 + 1)
    high = scaled - (scaled - value)
    return high, value - high


@op("div")
def div(code: Instruction) -> Run:
    """Quotient; that of integers is cut towards zero. Float quotients are correctly rounded."""
    if is_float(code.type):
        return elementwise(code, np.divide)
    return _integer_quotient(code, remainder=False)


@op("rem")
def rem(code: Instruction) -> Run:
    """Remainder, with the sign of the dividend."""
    return _integer_quotient(code, remainder=True)


def _integer_quotient(code: Instruction, remainder: bool) -> Run:
    kind = code.type
    put = writer(code.operands[0], kind)
    first, second = (reader(operand, kind) for operand in code.operands[1:3])

    def run(step: Step) -> None:
        a, b = first(step), second(step)
        if not np.all(b):
            step.require(b != 0, "division by zero has no defined result")
        b = np.where(b == 0, NUMPY[kind](1), b)
        rest = np.fmod(a, b)
        put(step, rest if remainder else (a - rest) // b)

    return run


UNARY: dict[str, Function] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": lambda x: 1 / x,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@op(*UNARY)
def unary(code: Instruction) -> Run:
    """Functions of one float, correctly rounded: the ISA bounds the error of approximations."""
    put, take = float_writer(code), float_reader(code, code.operands[1])
    function = UNARY[code.opcode]

    def run(step: Step) -> None:
        put(step, function(np.asarray(take(step), np.float64)))

    return run


COMPARE: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    **dict.fromkeys(("lt", "lo"), np.less),
    **dict.fromkeys(("le", "ls"), np.less_equal),
    **dict.fromkeys(("gt", "hi"), np.greater),
    **dict.fromkeys(("ge", "hs"), np.greater_equal),
}
COMBINE: dict[str, Function] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


def comparison(code: Instruction, name: str, kind: str) -> Function:
    """The function of a comparison; those that end in u are true of NaN."""
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if is_float(kind):
        if name.endswith("u"):
            ordered = COMPARE[name[:-1]]
            return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
        if name == "ne":
            return lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b)
    return COMPARE[name]


@op("setp")
def setp(code: Instruction) -> Run:
    """Compare: ``p = (a compare b) combine c``, and ``q`` with the opposite comparison."""
    kind, name = code.type, code.modifiers[0]
    compare = comparison(code, name, kind)
    combine = next((COMBINE[m] for m in code.modifiers if m in COMBINE), None)
    target = code.operands[0]
    second = None
    if isinstance(target, Pair):
        second, target = writer(target.second, "pred"), target.first
    put = writer(target, "pred")
    a, b = (_source(code, operand, kind) for operand in code.operands[1:3])
    if combine is None and second is None:
        return lambda step: put(step, compare(a(step), b(step)))
    with_ = reader(code.operands[3], "pred") if combine else None

    def run(step: Step) -> None:
        holds = compare(a(step), b(step))
        other = ~holds
        if combine is not None and with_ is not None:
            given = np.array(with_(step))
            holds, other = combine(holds, given), combine(other, given)
        put(step, holds)
        if second is not None:
            second(step, other)

    return run


@op("selp")
def selp(code: Instruction) -> Run:
    """``p ? a : b``, bit by bit."""
    kind = code.type
    put, which = writer(code.operands[0], kind), reader(code.operands[3], "pred")
    a, b = (reader(operand, kind) for operand in code.operands[1:3])
    return lambda step: put(step, np.where(which(step), a(step), b(step)))
