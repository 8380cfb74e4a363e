"""What the kernels share: how a program finds its stream, and attention the rows of one.

A stream has ``S = N + P`` rows: own tokens, then slots. ``length`` of the own tokens are valid. The
valid rows are numbered ``0 .. count`` without the gap: a loop over keys meets no padding::

    row      0 ... length-1 | length ... N-1 | N ... N+P-1
             valid            padding          valid (slots)
    number   0 ... length-1                    length ... length+P-1 = count-1

A stream of length 0 is absent where it has a length at all: ``count`` is 0, slots included.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def pick(values, m, M: tl.constexpr):
    """The ``m``-th of ``M`` pointers, ``m`` being known at run time only."""
    chosen = values[0]
    for i in tl.static_range(1, M):
        chosen = tl.where(m == i, values[i], chosen)
    return chosen


@triton.jit
def number(value):
    """The integer behind one of ``launch.numbers``, as int64."""
    return (tl.cast(value, tl.int64) >> 1) - 1


@triton.jit
def pick_int(values, m, M: tl.constexpr):
    """The ``m``-th of ``M`` integers that ``launch.numbers`` made ready, as int64."""
    chosen = values[0]
    for i in tl.static_range(1, M):
        chosen = tl.where(m == i, values[i], chosen)
    return number(chosen)


@triton.jit
def pick_stride(strides, axis: tl.constexpr, m, M: tl.constexpr):
    """Stride of one axis of the ``m``-th stream, as int64."""
    chosen = tl.cast(strides[0][axis], tl.int64)
    for i in tl.static_range(1, M):
        chosen = tl.where(m == i, tl.cast(strides[i][axis], tl.int64), chosen)
    return chosen


@triton.jit
def head_of(ptrs, strides, head_axis: tl.constexpr, b, h, m, M: tl.constexpr):
    """Where head ``h`` of example ``b`` of stream ``m`` begins; axis 0 is the batch."""
    offset = b * pick_stride(strides, 0, m, M) + h * pick_stride(strides, head_axis, m, M)
    return pick(ptrs, m, M) + offset


@triton.jit
def find_stream(pid, tiles, heads, M: tl.constexpr):
    """Which stream a program belongs to, its (b, h) and its tile there.

    Programs are numbered stream by stream, (b, h) by (b, h), tile by tile; where there are no
    heads, b by b.
    """
    m = 0
    first = tl.cast(0, tl.int64)
    end = number(tiles[0]) * heads
    for i in tl.static_range(1, M):
        beyond = pid >= end
        m = tl.where(beyond, i, m)
        first = tl.where(beyond, end, first)
        end += number(tiles[i]) * heads
    per_head = pick_int(tiles, m, M)
    mine = pid - first
    return m, mine // per_head, mine % per_head


@triton.jit
def valid_counts(length_ptrs, m, b, rows, P, M: tl.constexpr, HAS_LENGTHS: tl.constexpr):
    """Valid own tokens, and valid rows, of example ``b`` of stream ``m``.

    Bit i of HAS_LENGTHS says that stream i has lengths.
    """
    own = rows - P
    length = own
    count = rows
    for i in tl.static_range(M):
        if (HAS_LENGTHS >> i) & 1 == 1:  # known when compiled, unlike the next  # noqa: SIM102
            if m == i:
                length = tl.minimum(tl.maximum(tl.load(length_ptrs[i] + b), 0), own)
                count = tl.where(length > 0, length + P, 0)
    return length, count


@triton.jit
def only_if(mask, condition):
    """The mask if a scalar condition holds, else an empty one.

    From Triton 3.8 on the interpreter takes ``mask & condition`` for integers, and refuses it.
    """
    return (mask & condition) != 0


@triton.jit
def is_valid(row, length, count, rows, P):
    """Which of the rows take part."""
    slot = (row >= rows - P) & (row < rows)
    return only_if((row < length) | slot, count > 0)


@triton.jit
def locate(
    pid, tiles, length_ptrs, rows, heads, H, P, M: tl.constexpr, HAS_LENGTHS: tl.constexpr
):  # fmt: skip
    """What a program works on: stream, b, h and tile; ``S``, valid own tokens, valid rows.

    Rows and tiles are int32, the launcher has seen to it; b and h are int64, so that what they are
    multiplied by need not be.
    """
    m, head, tile = find_stream(pid, tiles, heads, M)
    S = pick_int(rows, m, M).to(tl.int32)
    length, count = valid_counts(length_ptrs, m, head // H, S, P, M, HAS_LENGTHS)
    return m, head // H, head % H, tile.to(tl.int32), S, length, count


@triton.jit
def is_needed(first, BLOCK_M: tl.constexpr, length, count, rows, P):
    """Whether a tile that begins at row ``first`` holds a valid row at all."""
    return (count > 0) & ((first < length) | (first + BLOCK_M > rows - P))


@triton.jit
def has_choice(count):
    """1.0 where softmax runs over more than one key, else 0.0."""
    return tl.where(count > 1, 1.0, 0.0)


@triton.jit
def row_of(number, length, rows, P):
    """The row that has this number among the valid ones."""
    return tl.where(number < length, number, number + (rows - P - length))


@triton.jit
def whole_tiles(length, BLOCK_N: tl.constexpr, dtype: tl.constexpr):
    """How many rows a walk passes in tiles without a gap, in which every row is an own token.

    The others are masked. Float32 products are long unrolled code, which is there once, always
    masked, or the registers spill.
    """
    return 0 if dtype == tl.float32 else length // BLOCK_N * BLOCK_N


@triton.jit
def load_tile(base_ptr, row, stride, mask, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of one head as ``[rows, BLOCK_D]``; zero where masked, and beyond ``D``.

    Offsets are 64 bit: a stream may reach beyond 2^31 elements, through its size or its strides.
    """
    offs_d = tl.arange(0, BLOCK_D)
    ptrs = base_ptr + row.to(tl.int64)[:, None] * stride + offs_d[None, :]
    return tl.load(ptrs, mask=mask[:, None] & (offs_d < D)[None, :], other=0.0)


@triton.jit
def load_rows(base_ptr, stride, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The row at ``base_ptr`` and those behind it, all there, as ``[ROWS, BLOCK_D]``."""
    offs_d = tl.arange(0, BLOCK_D)
    ptrs = base_ptr + tl.arange(0, ROWS).to(tl.int64)[:, None] * stride + offs_d[None, :]
    inside = (offs_d < D)[None, :]
    return tl.load(ptrs) if D == BLOCK_D else tl.load(ptrs, mask=inside, other=0.0)


@triton.jit
def store_tile(base_ptr, row, stride, tile, mask, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write ``[rows, BLOCK_D]`` to rows of one head, in the dtype of the pointer."""
    offs_d = tl.arange(0, BLOCK_D)
    ptrs = base_ptr + row.to(tl.int64)[:, None] * stride + offs_d[None, :]
    value = tile.to(base_ptr.dtype.element_ty)
    tl.store(ptrs, value, mask=mask[:, None] & (offs_d < D)[None, :])
