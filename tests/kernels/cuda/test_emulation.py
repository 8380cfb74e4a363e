"""The emulation of Hopper's instructions, on which the CUDA kernels are tested without a GPU."""

import ctypes

import pytest
import torch
from native_build import needs_compiler, shared_library

from mbt_fast.testing import assert_close_to_exact

SEEDS = (0, 1, 2)  # copies complete at once, as late as can be, and in any order
K, MN = 0, 1  # majors
pytestmark = [pytest.mark.native, needs_compiler]


@pytest.fixture(scope="session")
def pieces():
    units = [("tests/kernels/native/hopper_pieces.cpp", [])]
    pieces = ctypes.CDLL(str(shared_library("hopper_pieces.so", units, ["-O2"])))
    pieces.error_of.restype = ctypes.c_char_p
    return pieces


def pointer(tensor):
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize(
    ("dtype", "columns", "a_major", "b_major", "registers", "depth"),
    [
        (torch.bfloat16, 64, K, K, False, 64),
        (torch.bfloat16, 176, K, K, False, 64),
        (torch.bfloat16, 208, K, K, False, 128),  # two panels of the summed dimension
        (torch.bfloat16, 64, K, MN, False, 64),
        (torch.bfloat16, 128, K, MN, False, 128),  # two panels of columns
        (torch.bfloat16, 64, MN, K, False, 64),
        (torch.bfloat16, 128, MN, MN, False, 48),
        (torch.bfloat16, 64, K, K, True, 64),
        (torch.bfloat16, 128, K, MN, True, 176),
        (torch.float16, 64, K, MN, True, 80),
        (torch.float16, 64, MN, K, False, 64),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", SEEDS)
def test_wgmma_multiplies_what_the_copy_engine_brought(
    pieces, dtype, columns, a_major, b_major, registers, depth, seed
):
    pieces.set_seed(seed)
    a = torch.randn(64, depth).to(dtype)
    b = torch.randn(depth, columns).to(dtype)
    c = torch.randn(64, columns)
    eager, exact = c + a.float() @ b.float(), c.double() + a.double() @ b.double()
    stored_a = a.T.contiguous() if a_major == MN else a
    stored_b = b if b_major == MN else b.T.contiguous()
    pieces.multiply(
        dtype == torch.float16, columns, a_major, b_major, registers, pointer(stored_a),
        pointer(stored_b), pointer(c), depth,
    )  # fmt: skip
    assert_close_to_exact(c, eager, exact)


class Map(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        ("sizes", ctypes.c_int64 * 5),
        ("strides", ctypes.c_int64 * 4),
        ("box", ctypes.c_int32 * 5),
        ("at", ctypes.c_int32 * 5),
    )


@pytest.mark.parametrize("swizzle", [False, True])
@pytest.mark.parametrize(
    "at", [(0, 0, 0, 0, 0), (64, 3, 1, 2, 1), (64, 17, 2, 0, 1), (0, -3, 0, 1, 0)], ids=str
)
def test_box_is_copied_with_zeros_outside_the_tensor(pieces, swizzle, at):
    tensor = torch.randn(2, 3, 3, 21, 128).bfloat16()  # [4] [3] [2] [1] [0]
    sizes, strides = tensor.shape[::-1], tensor.stride()[::-1]
    box = (64, 16, 1, 1, 1)
    described = Map(
        tensor.data_ptr(),
        (ctypes.c_int64 * 5)(*sizes),
        (ctypes.c_int64 * 4)(*(2 * stride for stride in strides[1:])),
        (ctypes.c_int32 * 5)(*box),
        (ctypes.c_int32 * 5)(*at),
    )
    out = torch.empty(16, 8, 8, dtype=torch.bfloat16)  # rows, chunks of 16 bytes
    pieces.load_box(ctypes.byref(described), swizzle, pointer(out), out.numel() * 2)
    x, row, head, which, batch = at
    expected = torch.zeros(16, 64, dtype=torch.bfloat16)
    rows = range(max(row, 0), min(row + 16, 21))
    first = rows.start - row
    expected[first : first + len(rows)] = tensor[
        batch, which, head, rows.start : rows.stop, x : x + 64
    ]
    expected = expected.unflatten(1, (8, 8))
    if swizzle:
        for number in range(16):
            order = [chunk ^ number % 8 for chunk in range(8)]
            expected[number] = expected[number, order].clone()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_bulk_reduction_adds(pieces, seed):
    pieces.set_seed(seed)
    sums, values = torch.randn(256), torch.randn(256)
    expected = sums + values
    pieces.add_bulk(pointer(sums), pointer(values), 256)
    assert torch.equal(sums, expected)


def test_matrices_are_stored_row_by_row_where_lanes_say(pieces):
    out = torch.empty(32, 8, dtype=torch.int16)
    pieces.store_numbered_matrices(pointer(out))
    rows = torch.arange(256, dtype=torch.int16).view(32, 8)  # lane n names row n
    assert torch.equal(out[5 * torch.arange(32) % 32], rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_elements_are_rounded_as_torch_rounds_them(pieces, dtype):
    values = torch.cat(
        [
            torch.randn(4096) * 10.0 ** torch.randint(-10, 6, (4096,)),
            torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 65519.0, 65520.0, 1e-8, 2.0**-25]),
            torch.arange(16) / 16 * 2.0**-20,
            1 + torch.arange(64) * 2.0**-12,  # ties
        ]
    )
    bits, back = torch.empty_like(values, dtype=dtype), torch.empty_like(values)
    sizes = (pointer(values), pointer(bits), pointer(back), values.numel())
    pieces.round_trip(dtype == torch.float16, *sizes)
    assert torch.equal(bits, values.to(dtype))
    assert torch.equal(back, values.to(dtype).float())


MISUSES = {
    "nobody arrives": "deadlock; 256 threads from 0 wait for phase 0 of mbarrier",
    "barrier without initialisation": "used before its initialisation",
    "too many arrive": "more arrive at an mbarrier than it counts",
    "barrier overwritten": "an mbarrier was overwritten",
    "barrier not yet visible": "used before the block has met",
    "barrier without fence": "an mbarrier without a fence",
    "copy outlives block": "a copy outlives its block",
    "store outlives block": "a copy outlives its block",
    "box not aligned": "a box is not aligned",
    "memory not aligned": "shared memory is not aligned",
    "outside shared memory": "shared memory is left",
    "named barrier counts": "threads disagree on how many",
    "named barrier of some": "128 threads from 0 wait for named barrier 1",
    "warp of some": "1 threads from 0 wait for its warp",
    "wgmma of some": "1 threads from 0 wait for the other threads of its wgmma",
    "wgmma without fence": "wgmma_fence is missing",
    "wgmma without wait": "a thread ends before its wgmma",
    "wgmma without commit": "a thread ends before its wgmma",
    "lanes disagree": "disagree on a wgmma",
    "accumulator touched": "an accumulator was changed under a wgmma",
    "register touched": "a register was changed under a wgmma",
    "operand overwritten": "shared memory was changed under a product in flight",
    "store without fence": "has no fence_async_proxy behind it",
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_refused(pieces, name):
    pieces.set_seed(1)
    message = pieces.error_of(name.encode()).decode()
    assert message
    assert MISUSES[name] in message


def test_program_without_misuse_is_not_refused(pieces):
    assert pieces.error_of(b"none") == b""
