"""Fragments of wgmma, lane by lane from the figures of the PTX ISA."""

import pytest

pytest.importorskip("numpy", reason="the executor needs numpy")

import numpy as np

from mbt_fast.testing.ptx import fragments


def owner(row, column):
    """(warp, lane) of an element of the accumulator."""
    return row // 16, row % 8 * 4 + column % 8 // 2


def test_accumulators_lie_as_in_figure_149():
    matrix = np.random.default_rng(0).random((2, 64, 24), np.float32)
    registers = fragments.accumulator_registers(matrix)
    for row, column in np.ndindex(64, 24):
        warp, lane = owner(row, column)
        index = column // 8 * 4 + row % 16 // 8 * 2 + column % 2
        assert (registers[index, :, warp, lane] == matrix[:, row, column]).all()
    assert (fragments.accumulator(registers) == matrix).all()


def test_multiplicands_lie_as_in_figure_148():
    registers = np.random.default_rng(0).integers(0, 2**32, (4, 3, 4, 32), np.uint32)
    matrix = fragments.multiplicand(registers)
    for row, column in np.ndindex(64, 16):
        warp, lane = owner(row, column)
        word = registers[column // 8 * 2 + row % 16 // 8, :, warp, lane]
        assert (matrix[:, row, column] == word >> (16 * (column % 2)) & 0xFFFF).all()
