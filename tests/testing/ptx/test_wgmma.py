"""Products of warp groups against float64, and what is refused around them."""

import pytest
import torch

pytest.importorskip("numpy", reason="the executor needs numpy")

import numpy as np
from layouts import bits, permuted
from programs import BARRIER, FENCE, execute, fill, nans, store

from mbt_fast.testing import ptx
from mbt_fast.testing.ptx.elements import ELEMENTS

A_AT, B_AT = 1024, 1024 + 16384  # addresses of the operands; shared memory begins at 1024
SIZE = 49152
WAIT = "    wgmma.wait_group.sync.aligned 0;\n"
COMMIT = "    wgmma.commit_group.sync.aligned;\n"
ORDER = "    wgmma.fence.sync.aligned;\n"


def laid_out(a, b, majors):
    """Shared memory with panels of 64 columns and the 128-byte swizzle, as TMA leaves them."""
    memory = np.zeros(SIZE // 2, np.uint16)
    for matrix, start, major in ((a, A_AT, majors[0]), (b, B_AT, majors[1])):
        matrix = matrix.view(torch.int16).numpy().view(np.uint16)
        rows = matrix.T if major else matrix  # rows of memory run along what is contiguous
        panel = len(rows) * 128
        for i, k in np.ndindex(*rows.shape):
            address = start + k // 64 * panel + i * 128 + k % 64 * 2
            memory[(permuted(address, 128) - 1024) // 2] = rows[i, k]
    return torch.from_numpy(memory.view(np.int16))


def operand(start, rows, major, step):
    """Descriptor of a step of 16 along the summed dimension."""
    if major:
        return bits(start + step * 2048, rows * 128, 1024, 128)
    return bits(start + step // 4 * rows * 128 + step % 4 * 32, 16, 1024, 128)


def accumulators(columns, first=0):
    return [f"%f{first + i}" for i in range(columns // 2)]


def product(columns, kind, majors, steps, scales=(1, 1), first=0, a_start=A_AT):
    d = ", ".join(accumulators(columns, first))
    lines = []
    k = 16 * steps
    for step in range(steps):
        a = operand(a_start, k if majors[0] else 64, majors[0], step)
        b = operand(B_AT, k if majors[1] else columns, majors[1], step)
        lines += [f"    mov.b64 %rd5, {a};", f"    mov.b64 %rd6, {b};"]
        lines.append(
            f"    wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} {{{d}}}, %rd5, "
            f"%rd6, {int(step > 0)}, {scales[0]}, {scales[1]}, {majors[0]}, {majors[1]};"
        )
    return "\n".join(lines) + "\n"


def matrix_of(result, columns):
    """Figure 149 of the PTX ISA, element by element."""
    registers = result.view(columns // 2, 4, 32)
    rows, cols = torch.meshgrid(torch.arange(64), torch.arange(columns), indexing="ij")
    index = cols // 8 * 4 + rows % 16 // 8 * 2 + cols % 2
    return registers[index, rows // 16, rows % 8 * 4 + cols % 8 // 2]


def operands(columns, steps, dtype=torch.bfloat16):
    torch.manual_seed(0)
    return torch.randn(64, 16 * steps).to(dtype), torch.randn(columns, 16 * steps).to(dtype)


def exact(a, b):
    return a.double() @ b.double().T


def check(actual, a, b, sign=1):
    """At most one rounding of float32 for each term and each sum."""
    bound = a.double().abs() @ b.double().abs().T * a.shape[1] * torch.finfo(torch.float32).eps
    assert ((actual.double() - sign * exact(a, b)).abs() <= bound).all()


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("majors", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
def test_products_of_both_majors(dtype, kind, majors, seed):
    columns, steps = 128, 8
    a, b = operands(columns, steps, dtype)
    body = fill(SIZE) + ORDER + product(columns, kind, majors, steps) + COMMIT + WAIT
    body += store(accumulators(columns))
    result = execute(body, laid_out(a, b, majors), nans(columns // 2, 128), seed=seed)
    check(matrix_of(result, columns), a, b)


def test_minus_one_negates_an_operand():
    a, b = operands(64, 1)
    body = fill(SIZE) + ORDER + product(64, "bf16", (0, 0), 1, (1, -1)) + COMMIT + WAIT
    result = execute(body + store(accumulators(64)), laid_out(a, b, (0, 0)), nans(32, 128))
    check(matrix_of(result, 64), a, b, sign=-1)


def from_registers(columns):
    """Loads fragments of A of one step from the result's place, as figure 148 says."""
    lines = ["    mul.wide.u32 %rd4, %r1, 4;", "    add.s64 %rd4, %rd2, %rd4;"]
    lines += [f"    ld.global.b32 %r{10 + i}, [%rd4+{512 * i}];" for i in range(4)]
    d = ", ".join(accumulators(columns))
    return (
        "\n".join(lines)
        + "\n"
        + ORDER
        + (
            f"    mov.b64 %rd6, {operand(B_AT, columns, 0, 0)};\n"
            f"    wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{{d}}}, "
            "{%r10, %r11, %r12, %r13}, %rd6, 0, 1, 1, 0;\n"
        )
    )


def fragments_of(a):
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(16), indexing="ij")
    words = torch.zeros(4, 4, 32, 2, dtype=torch.int16)
    where = columns // 8 * 2 + rows % 16 // 8, rows // 16, rows % 8 * 4 + columns % 8 // 2
    words[(*where, columns % 2)] = a.view(torch.int16)
    return words.view(torch.float32).reshape(4, 128)


def with_fragments(a, columns=64):
    result = nans(columns // 2, 128)
    result[:4] = fragments_of(a)
    return result


def test_a_from_registers():
    a, b = operands(64, 1)
    body = fill(SIZE) + from_registers(64) + COMMIT + WAIT + store(accumulators(64))
    result = execute(body, laid_out(a, b, (0, 0)), with_fragments(a))
    check(matrix_of(result, 64), a, b)


def test_two_groups_complete_one_after_the_other():
    a, b = operands(64, 2)
    body = fill(SIZE) + ORDER + product(64, "bf16", (0, 0), 2) + COMMIT
    body += product(64, "bf16", (0, 0), 2, first=32) + COMMIT
    body += "    wgmma.wait_group.sync.aligned 1;\n" + store(accumulators(64)) + WAIT
    result = execute(body, laid_out(a, b, (0, 0)), nans(32, 128))
    check(matrix_of(result, 64), a, b)
    early = body.replace(store(accumulators(64)), store(accumulators(64, 32)))
    result = execute(early, laid_out(a, b, (0, 0)), nans(32, 128))
    assert result.isnan().all(), "accumulators are NaN until their group is waited for"


def refused(body, message, result=None, source=None):
    a, b = operands(64, 1)
    source = laid_out(a, b, (0, 0)) if source is None else source
    result = nans(32, 128) if result is None else result
    with pytest.raises(ptx.PtxError, match=message) as raised:
        execute(body, source, result)
    return raised.value


ONE = product(64, "bf16", (0, 0), 1)


def test_a_store_without_proxy_fence_is_named():
    body = fill(SIZE).replace(FENCE, "") + ORDER + ONE + COMMIT + WAIT
    error = refused(body, r"may not see what line \d+ stored: no fence.proxy.async")
    assert error.text.startswith("wgmma.mma_async")


def test_the_issuing_group_may_fence_behind_a_barrier():
    body = fill(SIZE).replace(FENCE + BARRIER, BARRIER + FENCE) + ORDER + ONE + COMMIT + WAIT
    execute(body, laid_out(*operands(64, 1), (0, 0)), nans(32, 128))


def test_accumulators_without_a_wait_are_nan():
    body = fill(SIZE) + ORDER + ONE + COMMIT + store(accumulators(64))
    result = execute(body, laid_out(*operands(64, 1), (0, 0)), nans(32, 128))
    assert result.isnan().all()


def test_a_wait_does_not_complete_what_is_not_committed():
    body = fill(SIZE) + ORDER + ONE + WAIT + store(accumulators(64))
    result = execute(body, laid_out(*operands(64, 1), (0, 0)), nans(32, 128))
    assert result.isnan().all()


def test_writing_an_accumulator_in_flight_is_refused():
    body = fill(SIZE) + ORDER + ONE + COMMIT + "    mov.b32 %f3, 0f00000000;\n" + WAIT
    refused(body, "accumulator was written before wgmma.wait_group")


def test_changing_an_operand_in_flight_is_refused():
    change = "    st.shared.b32 [%r3], %r1;\n"
    body = fill(SIZE) + ORDER + ONE + COMMIT + change + WAIT
    refused(body, r"shared memory that the wgmma of line \d+ reads changed")
    execute(fill(SIZE) + ORDER + ONE + COMMIT + WAIT + change, nans(SIZE // 4), nans(1))


def test_changing_a_fragment_in_flight_is_refused():
    body = fill(SIZE) + from_registers(64) + COMMIT + "    mov.b32 %r12, 7;\n" + WAIT
    refused(body, r"registers that the wgmma of line \d+ reads changed", nans(32, 128).zero_())


def test_a_first_product_without_fence_is_refused():
    refused(fill(SIZE) + ONE + COMMIT + WAIT, "wgmma.fence must come before the first wgmma")


def test_a_register_touched_behind_the_fence_is_refused():
    body = fill(SIZE) + ORDER + "    mov.b32 %f0, 0f00000000;\n" + ONE + COMMIT + WAIT
    refused(body, r"uses %f0 and no wgmma.fence comes between")


def test_sums_of_another_shape_need_a_fence():
    wide = product(128, "bf16", (0, 0), 1)
    refused(fill(SIZE) + ORDER + ONE + COMMIT + WAIT + wide, r"uses %f0 and no wgmma.fence")


def test_accumulators_that_overlap_in_flight_are_refused():
    body = fill(SIZE) + ORDER + ONE + ORDER + product(64, "bf16", (0, 0), 1, first=16)
    refused(body, "accumulators overlap")


def test_a_partial_warp_is_refused():
    body = fill(SIZE) + ORDER + "    @%p1 bra $skip;\n" + ONE + "$skip:\n"
    refused(body, "all threads of a warp must execute this")


def test_a_missing_warp_is_a_deadlock():
    skip = "    setp.lt.u32 %p2, %r1, 32;\n    @%p2 bra $skip;\n"
    body = fill(SIZE) + ORDER + skip + ONE + "$skip:\n"
    refused(body, "all threads wait: for the other warps of the warp group")


def test_a_descriptor_must_stay_in_the_block():
    body = fill(SIZE) + ORDER + product(64, "bf16", (0, 0), 1, a_start=64000) + COMMIT + WAIT
    refused(body, "a descriptor leads out of the 65536 bytes")


def test_a_descriptor_must_be_the_same_in_a_group():
    vary = "    setp.ge.u32 %p2, %r1, 64;\n    @%p2 mov.b64 %rd5, 4611686293305294848;\n"
    body = fill(SIZE) + ORDER + ONE.replace("    wgmma", vary + "    wgmma") + COMMIT + WAIT
    refused(body, "the same in all threads of a warp group")


BYTES = {"tf32": 4, "e4m3": 1, "e5m2": 1, "s8": 1, "u8": 1}
TYPES = [("tf32", "tf32"), ("e4m3", "e4m3"), ("e4m3", "e5m2"), ("s8", "s8"), ("u8", "s8")]


def draw(kind, rows, count):
    """A matrix, and what its elements are worth."""
    if kind in ("s8", "u8"):
        dtype = torch.int8 if kind == "s8" else torch.uint8
        matrix = torch.randint(-100, 100, (rows, count)).to(dtype)
        return matrix, matrix.double()
    if kind == "tf32":
        matrix = torch.randn(rows, count)
        return matrix, (matrix.view(torch.int32) & ~0x1FFF).view(torch.float32).double()
    dtype = torch.float8_e4m3fn if kind == "e4m3" else torch.float8_e5m2
    matrix = torch.randn(rows, count).to(dtype)
    return matrix, matrix.double()


@pytest.mark.parametrize("kinds", TYPES, ids="-".join)
def test_elements_of_one_and_four_bytes(kinds):
    torch.manual_seed(0)
    steps, columns = 3, 64
    depth = 32 // BYTES[kinds[0]]
    total = "s32" if kinds[0] in ("s8", "u8") else "f32"
    (a, a_exact), (b, b_exact) = (draw(kind, 64, depth * steps) for kind in kinds)
    halves = [matrix.view(torch.int16) for matrix in (a, b)]
    body = product(columns, "bf16", (0, 0), steps)
    body = body.replace("k16.f32.bf16.bf16", f"k{depth}.{total}.{kinds[0]}.{kinds[1]}")
    body = body.replace(", 1, 1, 0, 0;", ", 1, 1;" if total == "f32" else ";")
    body = fill(SIZE) + ORDER + body + COMMIT + WAIT + store(accumulators(columns))
    result = execute(body, laid_out(*halves, (0, 0)), nans(columns // 2, 128))
    actual = matrix_of(result, columns)
    if total == "s32":
        assert torch.equal(actual.view(torch.int32).double(), a_exact @ b_exact.T)
    else:
        check(actual, a_exact, b_exact)


def test_every_value_of_e4m3_is_torchs():
    values = ELEMENTS["e4m3"].values(np.arange(256, dtype=np.uint8))
    exact = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    np.testing.assert_array_equal(values, exact.numpy())


@pytest.mark.parametrize(
    "text",
    ["m64n64k16.f16.f16.f16", "m64n64k256.s32.b1.b1", "m64n64k16.f32.bf16.f16"],
)
def test_other_types_are_not_implemented(text):
    body = fill(SIZE) + ORDER + ONE.replace("m64n64k16.f32.bf16.bf16", text)
    refused(body, "not implemented")
