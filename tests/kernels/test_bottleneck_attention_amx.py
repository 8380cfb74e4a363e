"""The AMX kernels, of which nothing has run on AMX: their pieces, and their machine code trapped.

Attention as a whole runs on emulated tiles in test_bottleneck_attention_cpu.py, like every
instruction set.
"""

import ctypes
import re
import shutil
import subprocess

import pytest
import torch
from native_build import needs_compiler, shared_library

from mbt_fast.ops import extension
from mbt_fast.testing import assert_close_to_exact

DTYPES = [torch.float32, torch.bfloat16, torch.float16]  # in the order of the kernels' tables
TILE_INSTRUCTIONS = {"ldtilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored", "tdpbf16ps"}
FLAGS = (
    "-O3 -fvisibility=hidden -ffp-contract=off -mavx2 -mfma -mf16c"
    " -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mamx-tile -mamx-bf16"
)
SOURCES = [
    "tests/kernels/native/amx_pieces.cpp",
    *(f"csrc/cpu/simd/{isa}.cpp" for isa in ("amx", "amx_emulated", "avx512")),
]

needs_features = pytest.mark.skipif(
    not extension.cpu_features().get("avx512_bf16"), reason="emulated tiles need AVX512-BF16"
)


@pytest.fixture(scope="session")
def pieces():
    """What the tests call, beside the translation units as setup.py compiles them."""
    units = [(source, []) for source in SOURCES]
    return ctypes.CDLL(str(shared_library("amx_pieces.so", units, FLAGS.split())))


def pointer(tensor):
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.native
@needs_features
@needs_compiler
def test_split_gives_parts_that_are_exactly_the_float32(pieces):
    extremes = torch.tensor([0.0, 1 / 3, torch.finfo(torch.float32).max, 2.0**-100, 1 + 2.0**-23])
    x = torch.cat([extremes, -extremes, torch.randn(22) * 10.0 ** torch.randint(-25, 35, (22,))])
    parts = torch.empty(3, 32, dtype=torch.bfloat16)
    pieces.split(pointer(x), pointer(parts))
    assert torch.equal(parts.double().sum(0), x.double())
    assert ((parts == 0) | (parts.sign() == x.sign())).all()


@pytest.mark.native
@needs_features
@needs_compiler
def test_split_keeps_nan_in_the_first_part(pieces):
    """Cut to its upper half, a NaN whose payload lies below would become an infinity."""
    x = torch.full((32,), 0x7F800001, dtype=torch.int32).view(torch.float32)
    parts = torch.empty(3, 32, dtype=torch.bfloat16)
    pieces.split(pointer(x), pointer(parts))
    assert parts.float().sum(0).isnan().all()


def add_product(pieces, a, b, c):
    """``c += a @ b`` on emulated tiles; ``c`` in place."""
    pairs = b.unflatten(0, (-1, 2)).transpose(1, 2).contiguous()  # of neighbours along k
    sizes = (a.shape[0], b.shape[1] // 16, a.shape[1] // 2)
    pieces.multiply_pairs(pointer(a), pointer(pairs), pointer(c), *map(ctypes.c_int64, sizes))


@pytest.mark.native
@needs_features
@needs_compiler
@pytest.mark.parametrize(
    ("tiles_down", "tiles_across", "tiles_deep"), [(1, 1, 1), (2, 2, 1), (3, 3, 2), (1, 4, 3)]
)
def test_product_of_tiles_within_tolerance(pieces, tiles_down, tiles_across, tiles_deep):
    """Blocks of 2 x 2 tiles, and what is left at both borders."""
    m, n, k = 16 * tiles_down, 16 * tiles_across, 32 * tiles_deep
    a, b = torch.randn(m, k).bfloat16(), torch.randn(k, n).bfloat16()
    c = torch.randn(m, n)
    eager, exact = c + a.float() @ b.float(), c.double() + a.double() @ b.double()
    add_product(pieces, a, b, c)
    assert_close_to_exact(c, eager, exact)


@pytest.mark.native
@needs_features
@needs_compiler
@pytest.mark.parametrize(
    ("a", "b"), [(2.0**-127, 2.0**100), (2.0**-66, 2.0**-66)], ids=["operand", "result"]
)
def test_tiles_flush_denormals(pieces, a, b):
    c = torch.zeros(16, 16)
    add_product(pieces, torch.full((16, 32), a).bfloat16(), torch.full((32, 16), b).bfloat16(), c)
    assert torch.equal(c, torch.zeros_like(c))


@pytest.mark.native
@needs_features
@needs_compiler
@pytest.mark.skipif(
    bool(extension.cpu_features().get("amx_bf16")),
    reason="this machine has AMX: test_bottleneck_attention_cpu.py runs it, and nothing traps",
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "own", "dim"), [(1, 1, 16), (35, 30, 24), (131, 127, 64)])
def test_machine_code_with_trapped_instructions_agrees_bit_for_bit(pieces, dtype, count, own, dim):
    """Instructions are decoded and carried out by tests/kernels/native/amx_traps.hpp."""
    qkv, dout = torch.randn(count, 3, dim).to(dtype), torch.randn(count, dim).to(dtype)
    results, trapped = [], []
    for emulated in (False, True):
        out, dqkv, lse = torch.empty_like(dout), torch.empty_like(qkv), torch.empty(count)
        trapped.append(
            pieces.run_head(
                ctypes.c_bool(emulated), DTYPES.index(dtype),
                *(ctypes.c_int64(size) for size in (count, own, dim)), ctypes.c_float(dim**-0.5),
                *(pointer(tensor) for tensor in (qkv, dout, out, lse, dqkv)),
            )
        )  # fmt: skip
        results.append([out, dqkv, lse])
    assert trapped[0] > 0
    assert trapped[1] == 0
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.skipif(bool(extension.why_missing()), reason="mbt_fast._C is not built")
@pytest.mark.skipif(not extension.cpu_features().get("avx2_fma"), reason="not built for x86-64")
@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump is not installed")
def test_only_the_amx_kernels_contain_tile_instructions():
    """Elsewhere they would stop the program on a machine without AMX."""
    command = ["objdump", "-d", "--no-show-raw-insn", extension.module().__file__]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for function in re.split(r"\n(?=[0-9a-f]+ <)", listing):
        words = TILE_INSTRUCTIONS & set(function.split())
        if words:
            found[function.split("<", 1)[1].split(">", 1)[0]] = words
    assert set.union(*found.values()) == TILE_INSTRUCTIONS
    assert all("8mbt_fast3cpu3amx" in name for name in found)
