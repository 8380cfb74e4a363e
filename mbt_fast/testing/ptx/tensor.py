"""Matrices spread over a warp: ``ldmatrix``, ``stmatrix`` and ``mma.sync``.

The fragments are those of the ISA's chapter on warp-level matrix instructions: lane ``4 g + t`` has
``e`` neighbours along the inner dimension in each 32-bit register.
"""

import re
from functools import lru_cache

import numpy as np

from mbt_fast.testing.ptx import shared_access
from mbt_fast.testing.ptx.elements import ELEMENTS
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.memory import vector_of
from mbt_fast.testing.ptx.move import address_reader
from mbt_fast.testing.ptx.operands import readers, writers
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import Instruction

ROW = 16  # bytes of a row of an 8 x 8 matrix of 16-bit elements


@op("ldmatrix")
def ldmatrix(code: Instruction) -> Run:
    """Load 8 x 8 matrices; lanes ``8 i`` to ``8 i + 7`` give the rows' addresses of matrix i."""
    count, transposed = _matrices(code)
    put, take = writers(code.operands[0], "b32"), address_reader(code.operands[1], "shared")
    asked = np.arange(32) % (8 * count)

    def run(step: Step) -> None:
        step.whole_warps()
        address = step.full(take(step))[:, asked]
        shared = step.blocks.shared
        rows = shared_access.load(step, shared.places(step, address, ROW), np.uint16, 8)
        matrices = rows[:, : 8 * count].reshape(step.n, count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        words = np.ascontiguousarray(matrices).view(np.uint32).reshape(step.n, count, 32)
        for position, write in enumerate(put):
            write(step, words[:, position])

    return run


@op("stmatrix")
def stmatrix(code: Instruction) -> Run:
    """Store 8 x 8 matrices; the converse of ``ldmatrix``."""
    count, transposed = _matrices(code)
    take, parts = address_reader(code.operands[0], "shared"), readers(code.operands[1], "b32")
    asked = np.arange(32) % (8 * count)

    def run(step: Step) -> None:
        step.whole_warps()
        address = step.full(take(step))[:, asked]
        words = np.stack([step.full(part(step)) for part in parts], 1)
        matrices = words.view(np.uint16).reshape(step.n, count, 8, 8)
        if transposed:
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
        shared = step.blocks.shared
        places = shared.places(step, address, ROW)[:, : 8 * count]
        rows, lanes = matrices.reshape(step.n, 8 * count, 8), step.lanes[:, : 8 * count]
        shared_access.store(step, places, rows, code.line, lanes)
        if step.blocks.proxies is not None:  # a row counts as stored by the thread that says where
            step.blocks.proxies.store(places, ROW, step.threads[:, : 8 * count], code.line)

    return run


def _matrices(code: Instruction) -> tuple[int, bool]:
    if not code.has("m8n8", "b16"):
        raise PtxError("only matrices .m8n8 of .b16 are implemented")
    if not any(m in ("shared", "shared::cta") for m in code.modifiers):
        raise PtxError("only .shared matrices are implemented")
    count = next(int(m[1:]) for m in code.modifiers if m in ("x1", "x2", "x4"))
    return count, code.has("trans")


@op("mma")
def mma(code: Instruction) -> Run:
    """``d = a b + c`` of a warp, 16 x 8; sums in float32 or int32, in no particular order."""
    shape = next((m for m in code.modifiers if re.fullmatch(r"m16n8k\d+", m)), None)
    out, left, right, inner = code.types
    if shape is None or not code.has("row", "col") or out != inner or out not in ("f32", "s32"):
        raise PtxError("of mma only .m16n8k*.row.col with sums in .f32 or .s32 is implemented")
    put, take_c = writers(code.operands[0], out), readers(code.operands[3], out)
    take_a, take_b = (readers(operand, "b32") for operand in code.operands[1:3])
    depth = int(shape.partition("k")[2])
    a_of, b_of = _left(left, depth), _right(right, depth)
    a_bits, a_value = ELEMENTS[left]
    b_bits, b_value = ELEMENTS[right]
    as_type = np.float32 if out == "f32" else np.int32

    def run(step: Step) -> None:
        step.whole_warps()
        n = step.n
        a = vector_of([part(step) for part in take_a], step, np.uint32)
        b = vector_of([part(step) for part in take_b], step, np.uint32)
        c = vector_of([part(step) for part in take_c], step, as_type)
        a = a_value(a.reshape(n, -1).view(a_bits)[:, a_of])
        b = b_value(b.reshape(n, -1).view(b_bits)[:, b_of])
        d = spread(np.matmul(a, b)) + c
        for position, write in enumerate(put):
            write(step, d[..., position])

    return run


@lru_cache
def _left(kind: str, depth: int) -> Array:
    """Where in a warp's registers of A each element [16, depth] is, in elements."""
    e = 4 // np.dtype(ELEMENTS[kind].bits).itemsize
    row, k = np.arange(16)[:, None], np.arange(depth)
    lane = row % 8 * 4 + k % (4 * e) // e
    register = row // 8 + 2 * (k // (4 * e))
    return (lane * (depth // (2 * e)) + register) * e + k % e


@lru_cache
def _right(kind: str, depth: int) -> Array:
    """Where in a warp's registers of B each element [depth, 8] is, in elements."""
    e = 4 // np.dtype(ELEMENTS[kind].bits).itemsize
    k, column = np.arange(depth)[:, None], np.arange(8)
    lane = column * 4 + k % (4 * e) // e
    return (lane * (depth // (4 * e)) + k // (4 * e)) * e + k % e


def spread(matrix: Array) -> Array:
    """Sums ``[n, 16, 8]`` as the lanes hold them: ``[n, 32, 4]``."""
    n = len(matrix)
    return matrix.reshape(n, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(n, 32, 4)
