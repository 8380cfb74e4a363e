"""How matrices of wgmma lie in the registers of a warp group.

PTX ISA, "Matrix Fragments for wgmma.mma_async.m64nNk16". A group has four warps of 32 lanes; lane
``4 r + c`` of warp ``w`` holds of rows ``16 w + r`` and ``16 w + r + 8`` the columns ``2 c`` and
``2 c + 1`` of every eight.
"""

import numpy as np

ROWS, WARPS, LANES = 64, 4, 32


def accumulator(registers: np.ndarray) -> np.ndarray:
    """The matrix that registers hold.

    Args:
        registers: ``[N / 2, groups, 4, 32]``, in the order of the operand.

    Returns:
        ``[groups, 64, N]``.
    """
    count, groups = registers.shape[:2]
    # column / 8, row half, column % 2; group; warp; row % 8, column / 2 % 4
    axes = registers.reshape(count // 4, 2, 2, groups, WARPS, 8, 4)
    return np.transpose(axes, (3, 4, 1, 5, 0, 6, 2)).reshape(groups, ROWS, count * 2)


def accumulator_registers(matrix: np.ndarray) -> np.ndarray:
    """The inverse of ``accumulator``."""
    groups, _, columns = matrix.shape
    axes = matrix.reshape(groups, WARPS, 2, 8, columns // 8, 4, 2)
    return np.transpose(axes, (4, 2, 6, 0, 1, 3, 5)).reshape(columns // 2, groups, WARPS, LANES)


def multiplicand(registers: np.ndarray) -> np.ndarray:
    """The matrix A of four registers with two elements each, the first in the lower half.

    Args:
        registers: uint32 ``[4, groups, 4, 32]``.

    Returns:
        uint16 ``[groups, 64, 16]``.
    """
    groups = registers.shape[1]
    halves = np.ascontiguousarray(registers).view(np.uint16)
    # column / 8, row half; group; warp; row % 8, column / 2 % 4, column % 2
    axes = halves.reshape(2, 2, groups, WARPS, 8, 4, 2)
    return np.transpose(axes, (2, 3, 1, 4, 0, 5, 6)).reshape(groups, ROWS, 16)
