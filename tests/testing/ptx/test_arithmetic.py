"""Each instruction on integers against Python's, and on floats against exact fractions."""

import math
import struct
from fractions import Fraction

import pytest

pytest.importorskip("numpy", reason="the executor needs numpy")

import numpy as np
from elementwise import THREADS, execute

from mbt_fast.testing import ptx

TYPES = {f"{k}{8 * n}": np.dtype(f"{'i' if k == 's' else 'u'}{n}") for k in "su" for n in (2, 4, 8)}
TYPES |= {"b16": np.dtype("u2"), "b32": np.dtype("u4"), "b64": np.dtype("u8")}
INTERESTING = [0, 1, 2, 3, 31, 32, 33, 63, 64, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**63, -1]


def drawn(kind, seed):
    """All sizes of numbers of a type, in 128 threads."""
    dtype, random = TYPES[kind], np.random.default_rng(seed)
    bits = 8 * dtype.itemsize
    values = [random.integers(0, 2**63) >> int(random.integers(0, 63)) for _ in range(THREADS)]
    values[: len(INTERESTING)] = random.permutation(INTERESTING)
    values = [int(v) % 2**bits for v in values]
    return np.array(values, f"u{dtype.itemsize}").view(dtype)


def wrapped(value, dtype):
    bits = 8 * dtype.itemsize
    return np.array(int(value) % 2**bits, f"u{dtype.itemsize}").view(dtype)[()]


def quotient(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def field(bits, signed):
    def extract(a, start, length):
        start, length = start & 255, length & 255
        if not length:
            return 0
        digits = [a >> min(i, bits - 1) & 1 if i < bits or signed else 0 for i in range(600)]
        taken = digits[start : start + length]
        value = sum(digit << i for i, digit in enumerate(taken))
        top = digits[min(start + length - 1, bits - 1)]
        return value - (top << length) if signed else value

    return extract


# Instruction, types of result and operands, meaning in Python's integers.
INTEGERS = [
    ("add.s32", "s32 s32 s32", lambda a, b: a + b),
    ("add.s64", "s64 s64 s64", lambda a, b: a + b),
    ("add.u16", "u16 u16 u16", lambda a, b: a + b),
    ("sub.u32", "u32 u32 u32", lambda a, b: a - b),
    ("sub.s64", "s64 s64 s64", lambda a, b: a - b),
    ("neg.s32", "s32 s32", lambda a: -a),
    ("neg.s64", "s64 s64", lambda a: -a),
    ("abs.s32", "s32 s32", abs),
    ("min.s64", "s64 s64 s64", min),
    ("min.u32", "u32 u32 u32", min),
    ("max.s32", "s32 s32 s32", max),
    ("max.u64", "u64 u64 u64", max),
    ("mul.lo.s32", "s32 s32 s32", lambda a, b: a * b),
    ("mul.lo.u64", "u64 u64 u64", lambda a, b: a * b),
    ("mul.hi.s32", "s32 s32 s32", lambda a, b: a * b >> 32),
    ("mul.hi.u32", "u32 u32 u32", lambda a, b: a * b >> 32),
    ("mul.hi.s64", "s64 s64 s64", lambda a, b: a * b >> 64),
    ("mul.hi.u64", "u64 u64 u64", lambda a, b: a * b >> 64),
    ("mul.wide.s16", "s32 s16 s16", lambda a, b: a * b),
    ("mul.wide.s32", "s64 s32 s32", lambda a, b: a * b),
    ("mul.wide.u32", "u64 u32 u32", lambda a, b: a * b),
    ("mad.lo.s32", "s32 s32 s32 s32", lambda a, b, c: a * b + c),
    ("mad.lo.s64", "s64 s64 s64 s64", lambda a, b, c: a * b + c),
    ("mad.hi.u32", "u32 u32 u32 u32", lambda a, b, c: (a * b >> 32) + c),
    ("mad.wide.s32", "s64 s32 s32 s64", lambda a, b, c: a * b + c),
    ("mad.wide.u32", "u64 u32 u32 u64", lambda a, b, c: a * b + c),
    ("div.s32", "s32 s32 s32", quotient),
    ("div.u32", "u32 u32 u32", quotient),
    ("div.s64", "s64 s64 s64", quotient),
    ("rem.s32", "s32 s32 s32", lambda a, b: a - quotient(a, b) * b),
    ("rem.s64", "s64 s64 s64", lambda a, b: a - quotient(a, b) * b),
    ("rem.u64", "u64 u64 u64", lambda a, b: a % b),
    ("and.b32", "b32 b32 b32", lambda a, b: a & b),
    ("or.b16", "b16 b16 b16", lambda a, b: a | b),
    ("xor.b64", "b64 b64 b64", lambda a, b: a ^ b),
    ("not.b32", "b32 b32", lambda a: ~a),
    ("shl.b32", "b32 b32 b32", lambda a, n: a << n if n < 32 else 0),
    ("shl.b64", "b64 b64 b32", lambda a, n: a << n if n < 64 else 0),
    ("shl.b16", "b16 b16 b32", lambda a, n: a << n if n < 16 else 0),
    ("shr.u32", "u32 u32 u32", lambda a, n: a >> min(n, 32)),
    ("shr.s32", "s32 s32 u32", lambda a, n: a >> min(n, 31)),
    ("shr.s64", "s64 s64 u32", lambda a, n: a >> min(n, 63)),
    ("shr.u64", "u64 u64 u32", lambda a, n: a >> min(n, 64)),
    ("bfe.u32", "u32 u32 u32 u32", field(32, signed=False)),
    ("bfe.s32", "s32 s32 u32 u32", field(32, signed=True)),
    ("bfe.u64", "u64 u64 u32 u32", field(64, signed=False)),
    ("cvt.s64.s32", "s64 s32", lambda a: a),
    ("cvt.u64.u32", "u64 u32", lambda a: a),
    ("cvt.u32.u64", "u32 u64", lambda a: a),
    ("cvt.u16.u32", "u16 u32", lambda a: a),
    ("cvt.u32.u16", "u32 u16", lambda a: a),
    ("cvt.s32.s16", "s32 s16", lambda a: a),
    ("cvt.s32.s8", "s32 s32", lambda a: (a + 128) % 256 - 128),
    ("cvt.u32.u8", "u32 u32", lambda a: a % 256),
    ("cvt.sat.u16.u32", "u16 u32", lambda a: min(a, 65535)),
    ("cvt.sat.s16.s32", "s16 s32", lambda a: max(min(a, 32767), -32768)),
]


@pytest.mark.parametrize(("name", "types", "meaning"), INTEGERS, ids=[i[0] for i in INTEGERS])
def test_integers(name, types, meaning):
    out, *kinds = types.split()
    inputs = [drawn(kind, seed) for seed, kind in enumerate(kinds)]
    if name.startswith(("div", "rem")):
        inputs[1][inputs[1] == 0] = 7
        inputs[0][inputs[0] == np.iinfo(inputs[0].dtype).min] = 5  # / -1 has no result
    if name.startswith(("shl", "shr")):
        inputs[1][20:] %= 70
    registers = ", ".join("{" + letter + "}" for letter in "abc"[: len(inputs)])
    found = execute(f"    {name} {{d}}, {registers};", inputs, TYPES[out])
    each = zip(*(array.tolist() for array in inputs), strict=True)
    expected = np.array([wrapped(meaning(*values), TYPES[out]) for values in each], TYPES[out])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["div.s32", "rem.u32"])
def test_division_by_zero_names_the_lane(name):
    b = np.ones(THREADS, np.int32)
    b[37] = 0
    with pytest.raises(ptx.PtxError, match="division by zero") as raised:
        execute(f"    {name} {{d}}, {{a}}, {{b}};", [b, b], np.int32)
    assert (raised.value.warp, raised.value.lane) == (1, 5)


FORMATS = {"f32": (24, -126), "bf16": (8, -126), "f16": (11, -14)}  # digits, lowest exponent


def nearest(value, kind):
    """A fraction rounded to a format, ties to even: a Python float, exact."""
    digits, lowest = FORMATS[kind]
    if value == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(value))), lowest) if abs(value) > 2**-200 else lowest
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(value) < Fraction(2) ** exponent and exponent > lowest:
        exponent -= 1
    unit = Fraction(2) ** (exponent - digits + 1)
    return float(round(value / unit) * unit)


def floats(seed, spread=8):
    random = np.random.default_rng(seed)
    return (
        random.standard_normal(THREADS) * 2.0 ** random.integers(-spread, spread, THREADS)
    ).astype(np.float32)


FLOATS = [
    ("add.f32", 2, lambda a, b: a + b),
    ("sub.f32", 2, lambda a, b: a - b),
    ("mul.f32", 2, lambda a, b: a * b),
    ("fma.rn.f32", 3, lambda a, b, c: a * b + c),
    ("div.full.f32", 2, lambda a, b: a / b),
    ("rcp.approx.ftz.f32", 1, lambda a: 1 / a),
    ("neg.f32", 1, lambda a: -a),
    ("max.f32", 2, max),
    ("min.f32", 2, min),
]


@pytest.mark.parametrize(("name", "count", "meaning"), FLOATS, ids=[f[0] for f in FLOATS])
def test_floats_are_rounded_once(name, count, meaning):
    inputs = [floats(seed) for seed in range(count)]
    registers = ", ".join("{" + letter + "}" for letter in "abc"[:count])
    found = execute(f"    {name} {{d}}, {registers};", inputs, np.float32)
    each = zip(*(array.tolist() for array in inputs), strict=True)
    expected = [nearest(meaning(*map(Fraction, values)), "f32") for values in each]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("ex2.approx.ftz.f32", np.exp2), ("rsqrt.approx.ftz.f32", lambda x: x**-0.5),
     ("lg2.approx.f32", np.log2), ("sqrt.rn.f32", np.sqrt), ("tanh.approx.f32", np.tanh)],
)  # fmt: skip
def test_functions_of_one_float(name, meaning):
    x = np.abs(floats(0, 4))
    found = execute(f"    {name} {{d}}, {{a}};", [x], np.float32)
    np.testing.assert_array_equal(found, meaning(x.astype(np.float64)).astype(np.float32))


def test_subnormal_numbers_are_flushed_where_it_is_said():
    x = np.full(THREADS, 2.0**-130, np.float32)
    two = np.full(THREADS, -2, np.float32)
    kept = execute("    mul.f32 {d}, {a}, {b};", [x, two], np.float32)
    flushed = execute("    mul.ftz.f32 {d}, {a}, {b};", [x, two], np.float32)
    assert (kept == -(2.0**-129)).all()
    assert (flushed == 0).all()
    assert np.signbit(flushed).all()


@pytest.mark.parametrize("name", ["max", "min"])
def test_the_larger_of_a_number_and_nan_is_the_number(name):
    x, nan = floats(0), np.full(THREADS, np.nan, np.float32)
    np.testing.assert_array_equal(
        execute(f"    {name}.f32 {{d}}, {{a}}, {{b}};", [x, nan], np.float32), x
    )
    assert np.isnan(execute(f"    {name}.NaN.f32 {{d}}, {{a}}, {{b}};", [x, nan], np.float32)).all()


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_pairs_of_halves_are_packed_and_rounded(kind):
    a, b = floats(0, 3), floats(1, 3)
    found = execute(f"    cvt.rn.{kind}x2.f32 {{d}}, {{a}}, {{b}};", [a, b], np.uint32)
    single = execute(f"    cvt.rn.{kind}.f32 {{d}}, {{a}};", [a], np.uint16)
    assert (found >> 16 == single).all(), "the first source is the upper half"
    for value, bits in zip(a.tolist(), single.tolist(), strict=True):
        expected = nearest(Fraction(value), kind)
        if kind == "bf16":
            assert struct.unpack("<f", struct.pack("<I", bits << 16))[0] == expected
        else:
            assert struct.unpack("<e", struct.pack("<H", bits))[0] == expected


PAIRS = {
    "fma.rn": (3, lambda a, b, c: a * b + c),
    "add": (2, lambda a, b: a + b),
    "sub": (2, lambda a, b: a - b),
    "mul": (2, lambda a, b: a * b),
}


@pytest.mark.parametrize("kind", ["bf16", "f16"])
@pytest.mark.parametrize("name", PAIRS)
def test_both_halves_of_pairs_are_rounded_once(name, kind):
    count, meaning = PAIRS[name]
    low, high = ([floats(seed + i, 2) for i in range(count)] for seed in (0, 10))
    pack = f"    cvt.rn.{kind}x2.f32 {{d}}, {{a}}, {{b}};"
    words = [execute(pack, list(pair), np.uint32) for pair in zip(high, low, strict=True)]
    registers = ", ".join("{" + letter + "}" for letter in "abc"[:count])
    found = execute(f"    {name}.{kind}x2 {{d}}, {registers};", words, np.uint32)
    for shift in (0, 16):
        values = [as_floats(word >> shift, kind) for word in words]
        expected = [nearest(meaning(*map(Fraction, v)), kind) for v in zip(*values, strict=True)]
        assert as_floats(found >> shift, kind) == expected


def as_floats(bits, kind):
    return execute(
        f"    cvt.f32.{kind} {{d}}, {{a}};", [(bits & 0xFFFF).astype(np.uint16)], np.float32
    ).tolist()


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("rni", lambda x: round(x)), ("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil)],
)
def test_floats_to_integers_are_rounded_and_clamped(name, meaning):
    x = floats(0, 5)
    x[:5] = [0.5, 1.5, 2.5, -0.5, -1.5]
    x[5:8] = [1e20, -1e20, np.nan]
    found = execute(f"    cvt.{name}.s32.f32 {{d}}, {{a}};", [x], np.int32)
    assert found[5:8].tolist() == [2**31 - 1, -(2**31), 0]
    rest = [meaning(v) for v in x[8:].tolist()]
    assert found[8:].tolist() == rest
    assert found[:5].tolist() == [meaning(v) for v in x[:5].tolist()]


def test_integers_to_floats_are_rounded():
    x = drawn("s32", 3)
    found = execute("    cvt.rn.f32.s32 {d}, {a};", [x], np.float32)
    assert found.tolist() == [nearest(Fraction(v), "f32") for v in x.tolist()]


COMPARISONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
SELECT = "    setp.{name}.{kind} %p1, {{a}}, {{b}};\n    selp.b32 {{d}}, 1, 0, %p1;"


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16", "f32"])
@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name, kind):
    a, b = (floats(0), floats(1)) if kind == "f32" else (drawn(kind, 0), drawn(kind, 1))
    b[40:80] = a[40:80]
    found = execute(SELECT.format(name=name, kind=kind), [a, b], np.uint32)
    assert found.astype(bool).tolist() == COMPARISONS[name](a, b).tolist()


@pytest.mark.parametrize("name", COMPARISONS)
def test_no_ordered_comparison_holds_of_nan_and_every_unordered_one_does(name):
    a, nan = floats(0), np.full(THREADS, np.nan, np.float32)
    assert not execute(SELECT.format(name=name, kind="f32"), [a, nan], np.uint32).any()
    assert execute(SELECT.format(name=f"{name}u", kind="f32"), [a, nan], np.uint32).all()


def test_a_comparison_is_combined_and_has_an_opposite():
    a, b = drawn("s32", 0), drawn("s32", 1)
    body = """
    setp.gt.s32 %p1, {b}, 0;
    setp.lt.and.s32 %p2|%p3, {a}, {b}, %p1;
    selp.b32 {d}, 1, 0, %p2;
    @%p3 add.s32 {d}, {d}, 2;"""
    positive = b > 0
    expected = (a < b) & positive, (a >= b) & positive
    found = execute(body, [a, b], np.uint32)
    assert found.tolist() == (expected[0] + 2 * expected[1]).tolist()
