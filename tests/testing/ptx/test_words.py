"""Operations on words, one result per thread, against Python's integers."""

import struct

import pytest
import torch

pytest.importorskip("numpy", reason="the executor needs numpy")

from programs import THREADS, execute

from mbt_fast.testing import ptx

EDGES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x12345678]
WORD = 0xFFFFFFFF


def words():
    """For each thread three numbers of 32 bits: edges, and drawn ones."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 2**32, (3, THREADS), generator=generator)
    edges = torch.tensor(EDGES)
    drawn[0, : len(EDGES)] = edges
    drawn[1, : len(EDGES)] = edges.flip(0)
    drawn[2, : len(EDGES)] = torch.arange(len(EDGES))
    return drawn


def run(text, given):
    """``text`` takes %r10, %r11 and %r12 to %r13."""
    source = given.to(torch.int32).contiguous()  # wraps around
    loads = "    mul.wide.u32 %rd3, %r1, 4;\n    add.s64 %rd3, %rd1, %rd3;\n"
    for i in range(3):
        loads += f"    ld.global.b32 %r{10 + i}, [%rd3+{4 * THREADS * i}];\n"
    stores = "    mul.wide.u32 %rd4, %r1, 4;\n    add.s64 %rd4, %rd2, %rd4;\n"
    stores += "    st.global.b32 [%rd4], %r13;\n"
    result = torch.zeros(THREADS, dtype=torch.int32)
    execute(loads + f"    {text}\n" + stores, source, result)
    return [value & WORD for value in result.tolist()]


def permuted(a, b, choice):
    octets = (a | b << 32).to_bytes(8, "little")
    out = []
    for nibble in (choice >> 4 * i & 15 for i in range(4)):
        byte = octets[nibble & 7]
        out.append((255 if byte & 128 else 0) if nibble & 8 else byte)
    return int.from_bytes(bytes(out), "little")


def inserted(field, word, start, length):
    mask = ((1 << length) - 1) << start & WORD
    return word & ~mask | field << start & mask


def any_of_three(a, b, c):
    return (a & b) | (~a & c) & WORD


TEXTS = {
    "popc.b32 %r13, %r10;": lambda a, b, c: a.bit_count(),
    "clz.b32 %r13, %r10;": lambda a, b, c: 32 - a.bit_length(),
    "brev.b32 %r13, %r10;": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "prmt.b32 %r13, %r10, %r11, %r12;": permuted,
    "prmt.b32 %r13, %r10, 0, 0x7771U;": lambda a, b, c: permuted(a, 0, 0x7771),
    "prmt.b32 %r13, %r10, %r11, 0xBA98;": lambda a, b, c: permuted(a, b, 0xBA98),
    "lop3.b32 %r13, %r10, %r11, %r12, 0xCA;": any_of_three,
    "lop3.b32 %r13, %r10, %r11, %r12, 0x96;": lambda a, b, c: a ^ b ^ c,
    "shf.l.wrap.b32 %r13, %r10, %r11, %r12;": (
        lambda a, b, c: (a | b << 32) << c % 32 >> 32 & WORD
    ),
    "shf.r.clamp.b32 %r13, %r10, %r11, %r12;": (lambda a, b, c: (a | b << 32) >> min(c, 32) & WORD),
    "bfi.b32 %r13, %r10, %r11, 5, 9;": lambda a, b, c: inserted(a, b, 5, 9),
    "bfi.b32 %r13, %r10, %r11, 0, 32;": lambda a, b, c: a,
    "bfi.b32 %r13, %r10, %r11, 30, 8;": lambda a, b, c: inserted(a, b, 30, 8),
    "add.cc.u32 %r14, %r10, %r11;\naddc.u32 %r13, %r12, 7;": (
        lambda a, b, c: c + 7 + (a + b > WORD) & WORD
    ),
    "sub.cc.u32 %r14, %r10, %r11;\nsubc.u32 %r13, %r12, 7;": (
        lambda a, b, c: c - 7 - (a < b) & WORD
    ),
    "add.cc.u32 %r14, %r10, %r11;\naddc.cc.u32 %r14, %r10, %r12;\naddc.u32 %r13, 0, 0;": (
        lambda a, b, c: int(a + c + (a + b > WORD) > WORD)
    ),
    "mad.lo.cc.u32 %r14, %r10, %r11, %r12;\nmadc.hi.u32 %r13, %r10, %r11, 3;": (
        lambda a, b, c: (a * b + c >> 32) + 3 & WORD
    ),
}


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_those_of_pythons_integers(text):
    given = words()
    expected = [TEXTS[text](*column) for column in zip(*given.tolist(), strict=True)]
    assert run(text, given) == expected


FLOATS = [0.0, -0.0, 1.0, 1.0625, 1.1875, -1.3, 447.9, 448.0, 465.0, 1e6, -1e9, 2.0**-9, 2.0**-10]
FLOATS += [2.0**-10 * 1.001, 3 * 2.0**-11, float("nan"), float("inf"), 57344.0, 61440.0, 2.0**-17]


def float_words():
    floats = torch.cat([torch.tensor(FLOATS), torch.randn(THREADS - len(FLOATS)) * 20])
    return torch.stack([floats, floats.flip(0), floats]).view(torch.int32)


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_floats_of_eight_bits_are_torchs_but_saturate(kind):
    dtype = torch.float8_e4m3fn if kind == "e4m3" else torch.float8_e5m2
    given = float_words()
    text = f"cvt.rn.satfinite.{kind}x2.f32 %rs1, %r10, %r11;\n    cvt.u32.u16 %r13, %rs1;"
    largest = torch.finfo(dtype).max
    upper, lower = given[0].view(torch.float32), given[1].view(torch.float32)
    expected = [x.clamp(-largest, largest).to(dtype).view(torch.uint8) for x in (upper, lower)]
    for got, high, low in zip(run(text, given), *(x.tolist() for x in expected), strict=True):
        for byte, wanted in ((got >> 8, high), (got & 255, low)):
            assert byte == wanted or byte & 127 == wanted & 127 == 127, "NaN has either sign"


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_pairs_of_eight_bits_become_float16(kind):
    dtype = torch.float8_e4m3fn if kind == "e4m3" else torch.float8_e5m2
    given = torch.arange(THREADS).repeat(3, 1) * 258
    text = f"cvt.u16.u32 %rs1, %r10;\n    cvt.rn.f16x2.{kind}x2 %r13, %rs1;"
    octets = given[0].to(torch.int16).view(torch.uint8).view(dtype).to(torch.float16)
    got = torch.tensor(run(text, given)).to(torch.int32).view(torch.float16)
    assert torch.equal(got.nan_to_num(nan=7), octets.nan_to_num(nan=7))


def test_tf32_rounds_ties_away_from_zero():
    def rounded(a, b, c):
        is_finite = a >> 23 & 255 != 255
        return (a + 0x1000 & 0xFFFFE000) & WORD if is_finite else a

    given = words()
    given[0, :2] = torch.tensor([struct.unpack("<I", struct.pack("<f", 1 + 2**-11))[0], 0x7F800000])
    expected = [rounded(*column) for column in zip(*given.tolist(), strict=True)]
    assert run("cvt.rna.tf32.f32 %r13, %r10;", given) == expected


def test_local_memory_is_each_threads_own():
    text = (
        ".local .align 8 .b8 depot[16];\n.reg .b64 %spl;\nmov.b64 %spl, depot;\n"
        "st.local.v2.b32 [%spl+8], {%r10, %r1};\nst.local.b32 [%spl], %r11;\n"
        "ld.local.v2.b32 {%r14, %r15}, [%spl+8];\nld.local.b32 %r16, [%spl];\n"
        "add.s32 %r13, %r14, %r15;\nadd.s32 %r13, %r13, %r16;"
    )
    given = words()
    a, b, _ = given.tolist()
    assert run(text, given) == [a[i] + b[i] + i & WORD for i in range(THREADS)]


def test_fused_products_of_float64_keep_what_the_product_loses():
    # (1 + e)^2 - 1 - 2 e = e^2, which the rounded product has lost
    text = (
        "mov.f64 %rd10, 0d3FF0000000100000;\nmov.f64 %rd11, 0dBFF0000000200000;\n"
        "fma.rn.f64 %rd12, %rd10, %rd10, %rd11;\ncvt.rn.f32.f64 %r13, %rd12;"
    )
    (value,) = {*run(text, words())}
    assert struct.unpack("<f", struct.pack("<I", value))[0] == 2.0**-64


@pytest.mark.parametrize(
    "text",
    [
        "prmt.b32.f4e %r13, %r10, %r11, %r12;",
        "addc.u64 %rd10, %rd10, %rd10;",
        "madc.hi.s32 %r13, %r10, %r11, %r12;",
    ],
)
def test_other_forms_are_not_implemented(text):
    with pytest.raises(ptx.PtxError, match="implemented"):
        run(text, words())
