"""Shuffles, votes and matrices of a warp, and copies that it waits for."""

import pytest

pytest.importorskip("numpy", reason="the executor needs numpy")

import numpy as np
from elementwise import THREADS, execute

from mbt_fast.testing import ptx

THREAD = np.arange(THREADS, dtype=np.uint32)
SEEDS = [None, 0, 1]


def lane_of(mode, lane, by, width):
    """The lane that is read, in groups of ``width`` lanes; its own if that is in another group.

    Only a butterfly may reach down into the groups before.
    """
    group = lane // width * width
    other = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": group + by % width}[mode]
    lowest = 0 if mode == "bfly" else group
    return other if lowest <= other < group + width else lane


@pytest.mark.parametrize("width", [32, 16, 8])
@pytest.mark.parametrize("by", [0, 1, 3, 8, 31])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode, by, width):
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    body = f"    shfl.sync.{mode}.b32 {{d}}, {{a}}, {by}, {clamp}, -1;"
    values = THREAD * 7
    found = execute(body, [values], np.uint32)
    expected = [values[t - t % 32 + lane_of(mode, int(t % 32), by, width)] for t in THREAD]
    assert found.tolist() == expected


def test_a_shuffle_says_whether_its_lane_was_in_range():
    body = """
    shfl.sync.down.b32 {d}|%p1, {a}, 4, 31, 0xffffffff;
    selp.b32 {d}, 1, 0, %p1;"""
    assert execute(body, [THREAD], np.uint32).tolist() == (THREAD % 32 < 28).tolist()


def test_a_lane_is_read_by_a_register():
    body = "    shfl.sync.idx.b32 {d}, {a}, {b}, 31, -1;"
    found = execute(body, [THREAD, THREAD * 5 % 32], np.uint32)
    assert found.tolist() == (THREAD // 32 * 32 + THREAD * 5 % 32).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_wait_for_those_that_the_mask_names(seed):
    """The lower half takes another way to the same shuffle."""
    body = """
    mov.u32 {d}, {a};
    and.b32 %r8, %r1, 16;
    setp.eq.u32 %p1, %r8, 0;
    @!%p1 bra wait;
    add.u32 {d}, {d}, 1000;
    bar.warp.sync 0xffff;
wait:
    bar.warp.sync -1;
    shfl.sync.bfly.b32 {d}, {d}, 16, 31, -1;"""
    found = execute(body, [THREAD], np.uint32, seed=seed)
    moved = THREAD ^ 16
    assert found.tolist() == (moved + np.where(moved % 32 < 16, 1000, 0)).tolist()


@pytest.mark.parametrize(
    ("vote", "expected"),
    [("all", [0, 1, 1, 0]), ("any", [1, 1, 1, 0]), ("uni", [0, 1, 1, 1])],
)
def test_votes(vote, expected):
    values = np.where(THREAD < 32, THREAD % 2, np.where(THREAD < 96, 1, 0)).astype(np.uint32)
    body = f"""
    setp.ne.u32 %p1, {{a}}, 0;
    vote.sync.{vote}.pred %p2, %p1, -1;
    selp.b32 {{d}}, 1, 0, %p2;"""
    assert execute(body, [values], np.uint32).tolist() == np.repeat(expected, 32).tolist()


def test_a_ballot_and_the_elected_lane():
    body = """
    setp.gt.u32 %p1, {a}, 40;
    vote.sync.ballot.b32 {d}, %p1, -1;
    elect.sync %r8|%p2, -1;
    @%p2 add.u32 {d}, {d}, %r8;"""
    found = execute(body, [THREAD], np.uint32)
    assert found[::32].tolist() == [0, 0xFFFFFE00, 0xFFFFFFFF, 0xFFFFFFFF]


REFUSED = {
    "outside of its own mask": ("    shfl.sync.bfly.b32 {d}, {a}, 1, 31, 65535;", "in the mask"),
    "a lane that takes no part": (
        """    setp.lt.u32 %p1, %r1, 8;
    @%p1 shfl.sync.bfly.b32 {d}, {a}, 8, 31, 255;""", "takes no part",
    ),
    "two masks": (
        """    mov.u32 %r8, -1;
    setp.eq.u32 %p1, %r1, 3;
    @%p1 mov.u32 %r8, 8;
    bar.warp.sync %r8;""", "the same mask",
    ),
    "a matrix for half a warp": (
        """    mov.u32 %r9, memory;
    setp.lt.u32 %p1, %r1, 16;
    @%p1 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{{d}}}, [%r9];""", "all threads of a warp",
    ),
    "an unaligned row of a matrix": (
        """    mov.u32 %r9, memory;
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{{d}}}, [%r9+8];""", "a multiple of 16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    body, message = REFUSED[name]
    with pytest.raises(ptx.PtxError, match=message):
        execute(f"{body}\n    mov.u32 {{d}}, 0;", [THREAD], np.uint32)


FILL = """
    mov.u32 %r9, memory;
    shl.b32 %r8, %r1, 2;
    add.u32 %r8, %r9, %r8;
    st.shared.u32 [%r8], {a};
    bar.sync 0;
    and.b32 %r10, %r1, 31;
    shl.b32 %r11, %r10, 4;
    add.u32 %r11, %r9, %r11;"""


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_are_loaded_by_rows_or_columns(count, trans):
    """128 threads fill 32 rows of 16 bytes: four matrices, one above the other."""
    elements = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    parts = ", ".join(["%r12", "%r13", "%r14", "%r15"][:count])
    for index in range(count):
        body = f"""{FILL}
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{{{parts}}}}}, [%r11];
    mov.b32 {{d}}, %r{12 + index};"""
        found = execute(body, [elements.view(np.uint32).reshape(-1)], np.uint32)
        pairs = found[:32].view(np.uint16).reshape(8, 8)
        expected = elements[index].T if trans else elements[index]
        assert pairs.tolist() == expected.tolist()


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_a_stored_matrix_is_what_is_loaded(trans):
    body = f"""{FILL}
    ldmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 {{{{%r12, %r13}}}}, [%r11];
    bar.sync 0;
    stmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 [%r11+1024], {{{{%r12, %r13}}}};
    bar.sync 0;
    shl.b32 %r8, %r10, 2;
    add.u32 %r8, %r9, %r8;
    ld.shared.u32 {{d}}, [%r8+1024];"""
    found = execute(body, [THREAD], np.uint32)
    assert found.tolist() == np.tile(THREAD[:32], 4).tolist()


def fragments(matrix, kind):
    """What lane 4 g + t holds of A (16 x k) or B (k x 8, transposed): ``[32, registers]``.

    Written element by element, as the figures of the ISA show it.
    """
    step = 4 // matrix.dtype.itemsize
    rows, k = matrix.shape
    words = np.zeros((32, rows // 8 * k // (4 * step), step), matrix.dtype)
    for row in range(rows):
        for column in range(k):
            lane = row % 8 * 4 + column % (4 * step) // step
            register = row // 8 + rows // 8 * (column // (4 * step))
            words[lane, register, column % step] = matrix[row, column]
    return words.view(np.uint32)[..., 0]


PRODUCTS = {
    "m16n8k16.row.col.f32.bf16.bf16.f32": (16, "bf16"),
    "m16n8k16.row.col.f32.f16.f16.f32": (16, "f16"),
    "m16n8k8.row.col.f32.bf16.bf16.f32": (8, "bf16"),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (8, "tf32"),
    "m16n8k4.row.col.f32.tf32.tf32.f32": (4, "tf32"),
    "m16n8k32.row.col.s32.s8.s8.s32": (32, "s8"),
}


def drawn(shape, kind, seed):
    """Bits and values."""
    random = np.random.default_rng(seed)
    if kind == "s8":
        values = random.integers(-128, 128, shape).astype(np.int8)
        return values, values.astype(np.float64)
    if kind == "f16":
        values = random.standard_normal(shape).astype(np.float16)
        return values.view(np.uint16), values.astype(np.float64)
    bits = random.standard_normal(shape).astype(np.float32).view(np.uint32)
    if kind == "tf32":
        return bits, (bits & 0xFFFFE000).view(np.float32).astype(np.float64)
    half = (bits >> 16).astype(np.uint16)
    return half, (half.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("shape", PRODUCTS)
def test_products_of_a_warp(shape):
    depth, kind = PRODUCTS[shape]
    (a_bits, a), (b_bits, b) = drawn((16, depth), kind, 0), drawn((8, depth), kind, 1)
    c = np.round(np.random.default_rng(2).standard_normal((16, 8)) * 8)
    left, right = fragments(a_bits, kind), fragments(b_bits, kind)
    out = "s32" if kind == "s8" else "f32"
    lane_row, lane_column = np.arange(32) // 4, np.arange(32) % 4 * 2
    places = [(lane_row + 8 * (i // 2), lane_column + i % 2) for i in range(4)]
    start = np.stack([c[place] for place in places], 1)
    start = start.astype(np.int32 if out == "s32" else np.float32).view(np.uint32)
    loads, words = [], np.concatenate([left, right, start], 1)
    for i in range(words.shape[1]):  # one register from each run of 32 words of global memory
        loads.append(f"    ld.global.b32 %r{i + 8}, [%rd1+{128 * i}];")
    names = [f"%r{i + 8}" for i in range(words.shape[1])]
    groups = np.split(names, [left.shape[1], left.shape[1] + right.shape[1]])
    a_regs, b_regs, c_regs = (", ".join(group) for group in groups)
    memory = np.zeros((max(4, words.shape[1]), 32), np.uint32)
    memory[: words.shape[1]] = words.T
    for register, place in enumerate(places):
        body = f"""
    ld.param.u64 %rd1, [p0];
    and.b32 %r8, %r1, 31;
    mul.wide.u32 %rd2, %r8, 4;
    add.s64 %rd1, %rd1, %rd2;
{chr(10).join(loads)}
    mma.sync.aligned.{shape} {{{{{c_regs}}}}}, {{{{{a_regs}}}}}, {{{{{b_regs}}}}}, {{{{{c_regs}}}}};
    mov.b32 {{d}}, {c_regs.split(", ")[register]};"""
        found = execute(body, [memory.reshape(-1)], np.int32 if out == "s32" else np.float32)
        exact = (a @ b.T + c)[place]
        bound = 0 if out == "s32" else 2.0**-20 * (np.abs(a) @ np.abs(b.T) + np.abs(c))[place]
        assert (np.abs(found[:32] - exact) <= bound).all()


COPY = """
    ld.param.u64 %rd1, [p0];
    mul.wide.u32 %rd2, %r1, 16;
    add.s64 %rd1, %rd1, %rd2;
    mov.u32 %r9, memory;
    shl.b32 %r8, %r1, 4;
    add.u32 %r9, %r9, %r8;
    cp.async.cg.shared.global [%r9], [%rd1], 16{size};
    cp.async.commit_group;
    cp.async.ca.shared.global [%r9+2048], [%rd1], 4;
    cp.async.commit_group;
    {wait}
    ld.shared.u32 {{d}}, [%r9+{at}];"""
WORDS = np.arange(4 * THREADS, dtype=np.uint32)


def copied(wait, at, size=""):
    body = COPY.format(wait=wait, at=at, size=size)
    return execute(body, [WORDS], np.uint32).tolist()


@pytest.mark.parametrize("wait", ["cp.async.wait_group 0;", "cp.async.wait_all;"])
def test_a_copy_is_there_when_it_was_waited_for(wait):
    assert copied(wait, 12) == WORDS[3::4].tolist()
    assert copied(wait, 2048) == WORDS[0::4].tolist()


def test_a_copy_that_was_not_waited_for_is_nan():
    nan = [0xFFFFFFFF] * THREADS
    assert copied("", 0) == nan
    assert copied("cp.async.wait_group 2;", 0) == nan
    assert copied("cp.async.wait_group 1;", 0) == WORDS[0::4].tolist()
    assert copied("cp.async.wait_group 1;", 2048) == nan


def test_what_a_copy_does_not_read_is_zero():
    assert copied("cp.async.wait_all;", 4, size=", 8") == WORDS[1::4].tolist()
    assert copied("cp.async.wait_all;", 8, size=", 8") == [0] * THREADS
    assert copied("cp.async.wait_all;", 0, size=", 0") == [0] * THREADS


def test_a_copy_reads_its_source_as_late_as_it_may():
    """A store to the source before the wait may be seen, and is."""
    wait = "st.global.u32 [%rd1], 77;\n    cp.async.wait_all;"
    assert copied(wait, 0) == [77] * THREADS


@pytest.mark.parametrize(
    ("change", "message"),
    [(("[%rd1], 16", "[%rd1+4], 16"), "a multiple of 16"),
     (("[%rd1], 16", "[%rd1+2048], 16"), "outside of all tensors"),
     (("16{size}", "16, 17"), "at most 16"),
     (("[%r9], ", "[%r9+8], "), "a multiple of 16")],
)  # fmt: skip
def test_copies_are_refused(change, message):
    body = COPY.replace(*change).format(wait="", at=0, size="")
    with pytest.raises(ptx.PtxError, match=message):
        execute(body, [WORDS], np.uint32)
