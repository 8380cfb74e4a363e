"""Parts of the CUDA forward, each alone: the polynomial for exp2, and who takes which items."""

import ctypes
from math import inf, nan

import pytest
import torch
from native_build import needs_compiler, shared_library

pytestmark = [pytest.mark.native, needs_compiler]
MULTIPROCESSORS = 132


@pytest.fixture(scope="session")
def parts():
    units = [("tests/kernels/native/forward_parts.cpp", [])]
    return ctypes.CDLL(str(shared_library("forward_parts.so", units, ["-O2", "-ffp-contract=off"])))


def exp2(parts, values):
    values = values.clone()
    parts.exp2_of(ctypes.c_void_p(values.data_ptr()), values.numel())
    return values


def test_polynomial_is_as_exact_as_the_special_function_units(parts):
    """Whose relative error is at most 2^-22, by the PTX ISA."""
    powers = torch.cat([torch.linspace(-125, 1, 1_000_001), torch.linspace(-1, 1, 1_000_001)])
    exact = powers.double().exp2()
    assert ((exp2(parts, powers) - exact).abs() / exact).max() <= 2.0**-22


def test_polynomial_of_masked_scores_is_exactly_zero(parts):
    assert exp2(parts, torch.tensor([-inf, -1e30, -127.0, -126.6])).tolist() == [0.0] * 4


def test_polynomial_keeps_integers_and_nan(parts):
    whole = torch.arange(-126.0, 2.0)
    assert torch.equal(exp2(parts, whole), whole.exp2())
    assert exp2(parts, torch.tensor([nan])).isnan().all()


def blocks_of(parts, heads, tiles, grid=MULTIPROCESSORS):
    """The block that takes each item; fails unless each is taken once."""
    items = heads * sum(tiles)
    blocks, taken = (torch.zeros(items, dtype=torch.int32) for _ in range(2))
    parts.take_items(
        grid, heads, (ctypes.c_int * len(tiles))(*tiles), len(tiles),
        ctypes.c_void_p(blocks.data_ptr()), ctypes.c_void_p(taken.data_ptr()),
    )  # fmt: skip
    assert taken.eq(1).all()
    return blocks.long()


@pytest.mark.parametrize("tiles", [1, 2, 3, 4, 7, 12, 13])
def test_no_block_gets_more_than_its_share_of_short_last_tiles(parts, tiles):
    heads = 768
    blocks = blocks_of(parts, heads, [tiles])
    last = blocks.view(heads, tiles)[:, -1].bincount(minlength=MULTIPROCESSORS)
    share = heads / MULTIPROCESSORS
    assert share / 2 <= last.min()
    assert last.max() <= 2 * share


def test_blocks_get_equally_many_items(parts):
    """Of streams of four and of thirteen tiles in one call, and where there are few."""
    for heads, grid in ((96, 132), (3, 132), (5, 2), (1, 1)):
        counts = blocks_of(parts, heads, [13, 4], grid).bincount(minlength=grid)
        assert counts.max() - counts.min() <= 1
