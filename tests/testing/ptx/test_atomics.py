"""Atomic operations: threads that meet at one address, and what each of them saw."""

import pytest
import torch

pytest.importorskip("numpy", reason="the executor needs numpy")

from programs import BARRIER, FENCE, THREADS, execute, fill

from mbt_fast.testing import ptx

KINDS = {"u32": torch.int32, "s32": torch.int32, "u64": torch.int64, "f32": torch.float32}
KINDS |= {"f64": torch.float64}
OWN = "    mul.wide.u32 %rd3, %r1, {size};\n    add.s64 %rd3, %rd1, %rd3;\n"


def body(operation, kind, size, space="global", target="%rd2"):
    """Every thread applies its own element to the result's first, and puts what it saw behind."""
    value = "%rd5" if size == 8 else "%r5"
    old = "%rd6" if size == 8 else "%r6"
    return OWN.format(size=size) + (
        f"    ld.global.b{8 * size} {value}, [%rd3];\n"
        f"    atom.{space}.gpu.acq_rel.{operation}.{kind} {old}, [{target}], {value};\n"
        f"    mul.wide.u32 %rd4, %r1, {size};\n    add.s64 %rd4, %rd2, %rd4;\n"
        f"    st.global.b{8 * size} [%rd4+{size}], {old};\n"
    )


def values(kind):
    torch.manual_seed(0)
    if kind[0] == "f":
        return torch.randn(THREADS, dtype=KINDS[kind])
    return torch.randint(0, 2**20, (THREADS,)).to(KINDS[kind])


def turns(source, function, start):
    """What was there before each turn, and after the last."""
    seen = [start]
    for value in source:
        seen.append(function(seen[-1], value))
    return torch.stack(seen)


OPERATIONS = {
    "add": lambda old, new: old + new,
    "min": torch.minimum,
    "max": torch.maximum,
    "exch": lambda old, new: new,
    "and": lambda old, new: old & new,
    "or": lambda old, new: old | new,
    "xor": lambda old, new: old ^ new,
}


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        *[("add", kind) for kind in KINDS],
        *[(name, kind) for name in ("min", "max") for kind in ("u32", "s32", "u64")],
        *[(name, "b32") for name in ("exch", "and", "or", "xor")],
    ],
)
def test_threads_take_turns(operation, kind):
    source = values("u32" if kind == "b32" else kind)
    start = source.new_tensor(3)
    result = source.new_zeros(THREADS + 1)
    result[0] = start
    execute(body(operation, kind, source.element_size()), source, result)
    seen = turns(source, OPERATIONS[operation], start)
    assert torch.equal(result[1:], seen[:-1])
    assert result[0] == seen[-1]


def test_compare_and_swap_lets_one_thread_in():
    text = (
        "    atom.global.gpu.acq_rel.cas.b32 %r6, [%rd2], 0, 1;\n"
        "    mul.wide.u32 %rd4, %r1, 4;\n    add.s64 %rd4, %rd2, %rd4;\n"
        "    st.global.b32 [%rd4+4], %r6;\n"
    )
    result = torch.zeros(THREADS + 1, dtype=torch.int32)
    execute(text, torch.zeros(1), result)
    assert (result[1:] == 0).sum() == 1
    assert result[0] == 1


@pytest.mark.parametrize("seed", [None, 0])
def test_a_lock_is_not_starved_by_those_who_spin_on_it(seed):
    text = (
        "    setp.ne.u32 %p2, %r1, 0;\n    @%p2 bra $end;\n"
        "$spin:\n    atom.global.gpu.acquire.cas.b32 %r6, [%rd2], 0, 1;\n"
        "    setp.ne.s32 %p3, %r6, 0;\n    @%p3 bra $spin;\n"
        "    ld.global.b32 %r7, [%rd2+4];\n    bra $add;\n"
        "$add:\n    add.s32 %r7, %r7, 1;\n    st.global.b32 [%rd2+4], %r7;\n"
        "    atom.global.gpu.release.exch.b32 %r6, [%rd2], 0;\n$end:\n"
    )
    result = torch.zeros(2, dtype=torch.int32)
    execute(text, torch.zeros(1), result, threads=32, blocks=5, seed=seed)
    assert result.tolist() == [0, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pairs_of_halves(dtype):
    source = torch.arange(2 * THREADS).to(dtype) / 64
    kind = {torch.float16: "f16x2", torch.bfloat16: "bf16x2"}[dtype]
    text = OWN.format(size=4) + (
        "    ld.global.b32 %r5, [%rd3];\n    mul.wide.u32 %rd4, %r1, 4;\n"
        "    add.s64 %rd4, %rd2, %rd4;\n"
        f"    red.global.gpu.relaxed.add.noftz.{kind} [%rd4], %r5;\n"
    )
    result = torch.ones(2 * THREADS, dtype=dtype)
    execute(text, source, result)
    assert torch.equal(result, source + 1)


def test_vectors_are_that_many_operations():
    text = (
        "    mov.b32 %r5, 0f3F800000;\n    mov.b32 %r6, 0f40000000;\n"
        "    atom.global.gpu.acq_rel.add.v2.f32 {%r7, %r8}, [%rd2], {%r5, %r6};\n"
    )
    result = torch.zeros(2)
    execute(text, torch.zeros(1), result)
    assert result.tolist() == [THREADS, 2 * THREADS]


def test_shared_memory_and_a_mask():
    text = fill(16 * THREADS) + (
        "    setp.lt.u32 %p2, %r1, 40;\n    @%p2 red.shared.add.u32 [%r2], 1;\n"
        + BARRIER
        + "    ld.shared.b32 %r5, [%r2];\n    @%p1 st.global.b32 [%rd2], %r5;\n"
    )
    result = torch.zeros(1, dtype=torch.int32)
    execute(text, torch.zeros(4 * THREADS, dtype=torch.int32), result)
    assert result.item() == 40


def test_the_async_proxy_does_not_see_an_atomic_without_fence():
    text = fill(16 * THREADS).replace(FENCE, "") + (
        FENCE + BARRIER + "    red.shared.add.u32 [%r2], 1;\n"
        "    @%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd2], [%r2], 16;\n"
    )
    with pytest.raises(ptx.PtxError, match="may not see what line"):
        execute(text, torch.zeros(4 * THREADS), torch.zeros(4))


@pytest.mark.parametrize(
    "text", ["red.add.u32 [%rd2], 1;", "atom.global.safeadd.f32 %r5, [%rd2], 0;"]
)
def test_other_forms_are_not_implemented(text):
    with pytest.raises(ptx.PtxError, match="not implemented"):
        execute(text, torch.zeros(1), torch.zeros(1))
