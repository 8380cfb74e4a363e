"""Operands of wgmma in shared memory, against a layout that is filled element by element."""

import pytest

pytest.importorskip("numpy", reason="the executor needs numpy")

import numpy as np
from layouts import bits, permuted

from mbt_fast.testing.ptx import descriptor

BYTES = 2


def filled(matrix, place, swizzle, size=32768):
    """Shared memory with matrix[i, k] at place(i, k), swizzled."""
    shared = np.full(size // BYTES, 0xFFFF, np.uint16)
    for i, k in np.ndindex(*matrix.shape):
        shared[permuted(place(i, k), swizzle) // BYTES] = matrix[i, k]
    return shared.reshape(-1, 8)


def read(shared, value, rows, major):
    chunks = shared[descriptor.chunk_addresses(value, rows, major) // 16]
    return descriptor.matrix(chunks, major)


@pytest.fixture
def operand():
    return np.arange(128 * 16, dtype=np.uint16).reshape(128, 16)


@pytest.mark.parametrize("swizzle", [32, 64, 128])
@pytest.mark.parametrize("step", [0, 1])
def test_rows_of_k_major_operands_are_swizzled_by_their_own_line(operand, swizzle, step):
    start, stride, offset = 1024, 8 * swizzle, step * 32 % swizzle
    shared = filled(
        operand,
        lambda i, k: start + i // 8 * stride + i % 8 * swizzle + offset + k * BYTES,
        swizzle,
    )
    value = bits(start + offset, 16, stride, swizzle)
    assert (read(shared, value, 128, descriptor.K_MAJOR) == operand).all()


@pytest.mark.parametrize("swizzle", [32, 64, 128])
@pytest.mark.parametrize("step", [0, 1])
def test_leading_offset_separates_pieces_of_mn_major_operands(operand, swizzle, step):
    wide, k_pieces = swizzle // BYTES, 4
    stride, leading = 8 * swizzle, 8 * swizzle * k_pieces
    start = 1024 + step * 2 * stride

    def place(i, k):
        return start + i // wide * leading + i % wide * BYTES + k // 8 * stride + k % 8 * swizzle

    shared = filled(operand, place, swizzle)
    value = bits(start, leading, stride, swizzle)
    assert (read(shared, value, 128, descriptor.MN_MAJOR) == operand).all()


def test_without_a_swizzle_the_leading_offset_separates_chunks_of_k(operand):
    leading, stride = 128, 256  # core matrices of 8 rows x 16 bytes

    def place(i, k):
        return 512 + i // 8 * stride + i % 8 * 16 + k // 8 * leading + k % 8 * BYTES

    shared = filled(operand, place, 16)
    value = bits(512, leading, stride, 16)
    assert (read(shared, value, 128, descriptor.K_MAJOR) == operand).all()


def test_without_a_swizzle_the_strides_of_mn_major_operands_change_roles(operand):
    # PTX ISA, figure 168: ((8, 1, 2), (8, 2)) : ((1, 8, 64), (8, 128)), LBO 128, SBO 64 elements
    leading, stride = 128 * BYTES, 64 * BYTES

    def place(i, k):
        return 512 + i // 8 * stride + i % 8 * BYTES + k // 8 * leading + k % 8 * 16

    shared = filled(operand[:16], place, 16)
    value = bits(512, leading, stride, 16)
    assert (read(shared, value, 16, descriptor.MN_MAJOR) == operand[:16]).all()


def test_a_pattern_that_begins_elsewhere_is_refused():
    with pytest.raises(ValueError, match="base offset of a descriptor must be 0, got 3"):
        descriptor.chunk_addresses(bits(1024, 16, 1024, 128, base_offset=3), 64, 0)
