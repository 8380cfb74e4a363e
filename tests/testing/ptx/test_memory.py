"""Loads and stores of all widths, and what is refused."""

import pytest
import torch

pytest.importorskip("numpy", reason="the executor needs numpy")

import numpy as np
from elementwise import THREADS, execute

from mbt_fast.testing import ptx

THREAD = np.arange(THREADS, dtype=np.uint32)
OWN = """
    mov.u32 %r9, memory;
    shl.b32 %r8, %r1, 4;
    add.u32 %r9, %r9, %r8;"""


@pytest.mark.parametrize("kind", ["u8", "s8", "u16", "s16"])
def test_narrow_values_are_extended(kind):
    x = np.arange(THREADS, dtype=np.uint32) * 0x01010181
    narrow = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{int(kind[1:]) // 8}")
    found = execute(
        f"{OWN}\n    st.shared.{kind} [%r9], {{a}};\n    ld.shared.{kind} {{d}}, [%r9];",
        [x],
        np.uint32,
        shared=2048,
    )
    assert found.tolist() == x.astype(narrow).astype(np.int64).astype(np.uint32).tolist()


@pytest.mark.parametrize("count", [2, 4])
def test_vectors_keep_their_order(count):
    values = ", ".join(["{a}", "1", "2", "3"][:count])
    into = ", ".join(["%r12", "%r13", "%r14", "%r15"][:count])
    body = f"""{OWN}
    st.shared.v{count}.b32 [%r9], {{{{{values}}}}};
    ld.shared.v{count}.b32 {{{{{into}}}}}, [%r9];
    mad.lo.s32 {{d}}, %r13, 1000, %r12;
    ld.shared.b32 %r16, [%r9+{4 * count - 4}];
    mad.lo.s32 {{d}}, %r16, 10000, {{d}};"""
    found = execute(body, [THREAD], np.uint32, shared=2048)
    assert found.tolist() == (THREAD + 1000 + 10000 * (count - 1)).tolist()


def test_words_are_taken_apart_and_put_together():
    body = """
    mov.b32 {{%rs1, %rs2}}, {a};
    mov.b32 {d}, {{%rs2, %rs1}};"""
    x = THREAD * 0x10003
    assert execute(body, [x], np.uint32).tolist() == (x >> 16 | (x << 16)).tolist()


def test_a_signed_parameter_is_extended():
    """The lower half of a pointer, read as a signed number into a wide register."""
    body = """
    ld.param.u64 %rd1, [p0];
    ld.param.s32 %rd2, [p0];
    cvt.u32.u64 %r8, %rd1;
    cvt.s64.s32 %rd3, %r8;
    setp.eq.s64 %p1, %rd2, %rd3;
    ld.param.v2.u32 {{%r9, %r10}}, [p0];
    setp.eq.and.u32 %p1, %r8, %r9, %p1;
    selp.b32 {d}, 1, 0, %p1;"""
    assert execute(body, [THREAD], np.uint32).all()


def test_what_a_guard_leaves_out_touches_nothing():
    body = """
    setp.lt.u32 %p1, %r1, 100;
    mov.u64 %rd1, 0;
    ld.param.u64 %rd2, [p0];
    selp.b64 %rd3, %rd2, %rd1, %p1;
    mov.u32 {d}, 5;
    @%p1 ld.global.u32 {d}, [%rd3];"""
    found = execute(body, [THREAD + 9], np.uint32)
    assert found.tolist() == np.where(THREAD < 100, 9, 5).tolist()


def test_fresh_shared_memory_and_fresh_registers_are_nan():
    found = execute(f"{OWN}\n    ld.shared.f32 {{d}}, [%r9];", [THREAD], np.float32, shared=2048)
    assert np.isnan(found).all()
    assert np.isnan(execute("    add.f32 {d}, %r30, 0f00000000;", [THREAD], np.float32)).all()


REFUSED = {
    "beyond shared memory": ("    ld.shared.u32 {d}, [memory+64];", "outside of the 64 bytes", 0),
    "before shared memory": ("    ld.shared.u32 {d}, [memory+-4];", "outside of the 64 bytes", 0),
    "unaligned in shared memory": ("    ld.shared.u32 {d}, [memory+2];", "a multiple of 4", 0),
    "unaligned vector": (
        "    ld.shared.v2.u32 {{{d}, %r9}}, [memory+4];", "a multiple of 8", 0,
    ),
    "unaligned in global memory": (
        "    ld.param.u64 %rd1, [p0];\n    ld.global.u32 {d}, [%rd1+2];", "a multiple of 4", 0,
    ),
    "before a tensor": (
        "    ld.param.u64 %rd1, [p0];\n    ld.global.u32 {d}, [%rd1+-4];", "outside of all", 0,
    ),
    "one thread beyond a tensor": (
        """    ld.param.u64 %rd1, [p0];
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1+4], 0;""", "outside of all", 127,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_access_is_refused_with_its_thread(name):
    body, message, thread = REFUSED[name]
    with pytest.raises(ptx.PtxError, match=message) as raised:
        execute(f"{body}\n    mov.u32 {{d}}, 0;", [THREAD], np.uint32, shared=64)
    error = raised.value
    assert (error.cta, error.warp, error.lane) == ((0, 0, 0), thread // 32, thread % 32)
    assert error.text in str(error)


def test_a_tensor_ends_at_its_last_element_not_at_its_storages():
    wide = torch.zeros(4, 10)
    memory = ptx.Memory.of(wide[:, :3])
    assert memory.spans == [(wide.data_ptr(), 4 * (3 * 10 + 3))]
    assert ptx.Memory.of(torch.zeros(0), torch.zeros(3, 0)).spans == []


def test_an_address_between_two_tensors_is_in_neither():
    both = np.zeros(8, np.uint32)
    start = both.ctypes.data
    memory = ptx.Memory([(start, 8), (start + 8, 8), (start + 24, 8)])
    places = np.array([start, start + 4, start + 8, start + 12, start + 16, start + 24])
    assert memory.holds(places, 4).tolist() == [True, True, True, True, False, True]
    assert memory.holds(places, 8).tolist() == [True, False, True, False, False, True]
