"""The syntax that compilers write."""

import pytest

pytest.importorskip("numpy", reason="the executor needs numpy")

from mbt_fast.testing import ptx
from mbt_fast.testing.ptx.syntax import Address, Immediate, Pair, Register, Sink, Symbol, Vector

TEXT = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 dynamic[];
.global .align 4 .b32 table[3] = {1, -1, 0x10};
/* a comment
   of two lines */
.visible .entry first(
    .param .u64 .ptr .global .align 16 pointer,  // aligned is what it points to
    .param .u32 count,
    .param .align 64 .b8 map[128],
    .param .u16 last
)
.reqntid 64, 2
.minnctapersm 2
{
    .reg .pred %p<3>;
    .reg .b32 %r<5>;
    .reg .f32 %f<5>;
    .shared .align 16 .b8 fixed[40];
    .loc 1 5 0
    @!%p1 shfl.sync.idx.b32 %r1|%p2, %r2, 0, 0x1f, -1;
    st.shared.v2.f32 [fixed+-8], {%f1, 0f3F800000};
    cp.async.bulk.tensor.2d [%r1], [%r2, {%r3, 7}], [%r4];
    elect.sync _|%p1, 4294967295;
    ret;
}
.entry second() { ret; }
"""


def kernel():
    return ptx.Module(TEXT)["first"]


def test_parameters_are_laid_out_by_their_alignment():
    places = {name: (p.offset, p.size) for name, p in kernel().parameters.items()}
    assert places == {"pointer": (0, 8), "count": (8, 4), "map": (64, 128), "last": (192, 2)}
    assert kernel().parameter_bytes == 194
    packed = ptx.pack(kernel(), [2**40, -1, bytes(range(128)), 7])
    assert packed[:12] == (2**40).to_bytes(8, "little") + b"\xff" * 4
    assert packed[64:192] == bytes(range(128))


def test_extern_arrays_begin_behind_the_others():
    shared = kernel().shared
    assert (shared["fixed"].offset, shared["fixed"].size) == (0, 40)
    assert (shared["dynamic"].offset, shared["dynamic"].size) == (1024, 0)
    assert kernel().shared_bytes == 1024


def test_arrays_have_their_initial_values():
    words = kernel().constants["table"].initial
    assert [int.from_bytes(words[i : i + 4], "little") for i in (0, 4, 8)] == [1, 2**32 - 1, 16]


def test_bounds_and_target():
    assert (kernel().threads, kernel().blocks_at_once, kernel().target) == ((64, 2, 1), 2, "sm_90a")


def test_operands():
    shuffle, store, copy, elect, _ = kernel().code
    assert shuffle.guard == Register("%p1", "pred", 1, negated=True)
    assert shuffle.operands[0] == Pair(Register("%r1", "b32", 1), Register("%p2", "pred", 2))
    assert shuffle.operands[3:] == (Immediate(31), Immediate(-1))
    assert store.operands[0] == Address(Symbol("fixed"), -8)
    assert store.operands[1].parts[1] == Immediate(0x3F800000, 4)
    assert copy.operands[1].coordinates == (Register("%r3", "b32", 3), Immediate(7))
    assert elect.operands[0] == Pair(Sink(), Register("%p1", "pred", 1))
    assert isinstance(store.operands[1], Vector)


def test_registers_of_one_width_are_one_class():
    (shuffle, store, *_) = kernel().code
    assert shuffle.operands[0].first.kind == store.operands[1].parts[0].kind == "b32"
    assert store.operands[1].parts[0].number == 6, "behind five registers %r"


def test_lines_are_those_of_the_text():
    for code in kernel().code:
        assert code.text.split()[0] in TEXT.splitlines()[code.line - 1]


def test_a_kernel_is_named_or_alone():
    assert ptx.Module(TEXT).names == ["first", "second"]
    with pytest.raises(ptx.PtxError, match=r"must be one of \['first', 'second'\], got 'third'"):
        ptx.Module(TEXT)["third"]
    with pytest.raises(ptx.PtxError, match="must have one kernel"):
        ptx.Module(TEXT).only()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("    ret;\n}\n.entry", "    ret\n}\n.entry"), "semicolon"),
        (("}\n.entry second() { ret; }", ""), "end with a brace"),
        (("    .loc 1 5 0", "    .calltargets f;"), "directive .calltargets"),
        (("= {1, -1, 0x10}", "= {1.5}"), "only integers"),
        (("@!%p1 shfl", "@7 shfl"), "guard must be a predicate"),
    ],
)
def test_what_cannot_be_parsed_is_refused(change, message):
    assert change[0] in TEXT
    with pytest.raises(ptx.PtxError, match=message):
        ptx.Module(TEXT.replace(*change))["first"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": (64,)}, r"block must be \(64, 2, 1\)"),
        ({"grid": (0,)}, "grid must have positive sizes"),
        ({"parameters": [1, 2]}, "parameters must have 4 values, got 2"),
        ({"parameters": b"123"}, "parameters must have 194 bytes, got 3"),
    ],
)
def test_a_launch_that_does_not_fit_its_kernel_is_refused(arguments, message):
    given = {"grid": (1,), "block": (64, 2), "parameters": bytes(194)} | arguments
    with pytest.raises(ValueError, match=message):
        ptx.launch(kernel(), **given, memory=ptx.Memory())
