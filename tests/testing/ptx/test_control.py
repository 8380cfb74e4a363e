"""Branches, barriers, and who may wait for whom."""

import pytest

pytest.importorskip("numpy", reason="the executor needs numpy")

import numpy as np
from elementwise import THREADS, execute

from mbt_fast.testing import ptx

SEEDS = [None, 0, 1, 2]
THREAD = np.arange(THREADS, dtype=np.uint32)


def test_threads_of_a_warp_take_different_turns_of_a_loop():
    """Sum of 1 to n, where n is the thread's own."""
    body = """
    mov.u32 {d}, 0;
    mov.u32 %r8, {a};
loop:
    setp.eq.u32 %p1, %r8, 0;
    @%p1 bra done;
    add.u32 {d}, {d}, %r8;
    sub.u32 %r8, %r8, 1;
    bra.uni loop;
done:"""
    found = execute(body, [THREAD % 37], np.uint32)
    n = THREAD % 37
    assert found.tolist() == (n * (n + 1) // 2).tolist()


def test_paths_meet_again_for_what_a_warp_does_together():
    body = """
    and.b32 %r8, %r1, 1;
    setp.eq.u32 %p1, %r8, 0;
    @%p1 bra even;
    mov.u32 {d}, 100;
    bra.uni together;
even:
    mov.u32 {d}, 200;
together:
    bar.sync 0;
    shfl.sync.bfly.b32 {d}, {d}, 1, 31, -1;"""
    found = execute(body, [THREAD], np.uint32)
    assert found.tolist() == np.where(THREAD % 2 == 0, 100, 200).tolist()


def test_labels_and_registers_in_braces_are_their_own():
    body = """
    mov.u32 {d}, 0;
    {{ .reg .b32 x; .reg .pred p;
    mov.u32 x, 3;
    again: add.u32 {d}, {d}, 1; sub.u32 x, x, 1; setp.ne.u32 p, x, 0; @p bra again; }}
    {{ .reg .b32 x; .reg .pred p;
    mov.u32 x, 4;
    again: add.u32 {d}, {d}, 1; sub.u32 x, x, 1; setp.ne.u32 p, x, 0; @!p bra out; bra again;
    out: }}"""
    assert (execute(body, [THREAD], np.uint32) == 7).all()


EXCHANGE = """
    mov.u32 %r9, memory;
    shl.b32 %r8, %r1, 2;
    add.u32 %r8, %r9, %r8;
    st.shared.u32 [%r8], {{a}};
    {barrier}
    mov.u32 %r10, 508;
    shl.b32 %r11, %r1, 2;
    sub.u32 %r10, %r10, %r11;
    add.u32 %r10, %r9, %r10;
    ld.shared.u32 {{d}}, [%r10];"""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("barrier", ["bar.sync 0;", "barrier.sync.aligned 3, 128;"])
def test_a_barrier_shows_the_stores_of_other_warps(barrier, seed):
    found = execute(EXCHANGE.format(barrier=barrier), [THREAD * 3], np.uint32, seed=seed)
    assert found.tolist() == (THREAD * 3)[::-1].tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_one_warp_arrives_and_another_waits(seed):
    body = """
    mov.u32 %r9, memory;
    setp.ge.u32 %p1, %r1, 32;
    @%p1 bra consumer;
    st.shared.u32 [%r9], 42;
    bar.arrive 5, 128;
    mov.u32 {d}, 7;
    bra.uni done;
consumer:
    bar.sync 5, 128;
    ld.shared.u32 {d}, [%r9];
done:"""
    found = execute(body, [THREAD], np.uint32, seed=seed)
    assert found.tolist() == np.where(THREAD < 32, 7, 42).tolist()


def test_barriers_do_not_wait_for_threads_that_have_left():
    body = """
    mov.u32 {d}, 1;
    setp.lt.u32 %p1, %r1, 64;
    @%p1 bra rest;
    bar.sync 0;
rest:"""
    assert (execute(body, [THREAD], np.uint32) == 1).all()


def test_a_last_warp_of_few_threads_is_whole():
    found = execute("    bar.sync 0;\n    mov.u32 {d}, 1;", [np.arange(40)], np.uint32, threads=40)
    assert (found == 1).all()


REFUSED = {
    "a barrier that half of a warp reaches": (
        "    setp.lt.u32 %p1, %r1, 16;\n    @%p1 bar.sync 0;", "all threads of a warp", 0,
    ),
    "a barrier that waits for too many": ("    bar.sync 2, 160;", "all threads wait", 0),
    "a barrier that counts half warps": ("    bar.sync 2, 48;", "multiples of 32", 0),
    "a barrier that does not exist": ("    bar.sync 16;", "has 16 barriers", 0),
    "a barrier with two counts": (
        """    mov.u32 %r8, 128;
    setp.ge.u32 %p1, %r1, 64;
    @%p1 mov.u32 %r8, 64;
    bar.sync 1, %r8;""", "the same count|more threads", 64,
    ),
    "more than a barrier waits for": ("    bar.sync 1, 64;", "more threads come", 0),
    "warps that wait at different barriers": (
        """    setp.lt.u32 %p1, %r1, 64;
    @%p1 bra one;
    bar.sync 1;
    bra.uni done;
one:
    bar.sync 2;
done:""", "barrier 1, barrier 2", 0,
    ),
    "threads of a warp that wait for one another": (
        """    setp.lt.u32 %p1, %r1, 1;
    @%p1 bra alone;
    bar.warp.sync 0xffffffff;
    bra.uni done;
alone:
    bar.warp.sync 0xffffffff;
done:""", "the other threads of a warp", 0,
    ),
    "a trap": ("    setp.eq.u32 %p1, %r1, 70;\n    @%p1 trap;", "stopped itself", 70),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_line_and_thread(name):
    body, message, thread = REFUSED[name]
    with pytest.raises(ptx.PtxError, match=message) as raised:
        execute(f"{body}\n    mov.u32 {{d}}, 0;", [THREAD], np.uint32)
    assert raised.value.line
    assert raised.value.warp == thread // 32


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("frobnicate.b32 {d}, {a};", "frobnicate is not implemented"),
        ("bra nowhere;", "no label"),
        ("add.u64 {d}, {a}, {a};", "has 4 bytes, and u64 needs 8"),
        ("cvt.rz.bf16.f32 %rs1, {a};", "only rounding to the nearest"),
        ("ld.u32 {d}, [%rd1];", "must name its state space"),
    ],
)
def test_what_is_not_understood_is_named_before_anything_runs(statement, message):
    with pytest.raises(ptx.PtxError, match=message) as raised:
        execute(f"    {statement}", [THREAD], np.uint32)
    assert raised.value.line
