"""Bulk copies and their tensor form: what arrives where, and what is refused."""

import pytest
import torch

pytest.importorskip("numpy", reason="the executor needs numpy")

from layouts import permuted
from programs import BARRIER, FENCE, execute, fill, nans

from mbt_fast.testing import ptx
from mbt_fast.testing.ptx import tensor_map

AT = 3072  # address of the target; shared memory begins at 1024, where the mbarrier is
INIT = "    @%p1 mbarrier.init.shared::cta.b64 [%r2], 1;\n" + BARRIER
WAIT = "$wait:\n    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;\n    @!%p2 bra $wait;\n"
BF16, FLOAT32 = 9, 7  # CUtensorMapDataType


def expect(size):
    return f"    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], {size};\n"


def show(size):
    """Shared memory from the target on goes to the result."""
    lines = [f"    shl.b32 %r3, %r1, 4;\n    add.s32 %r3, %r3, {AT};"]
    lines += ["    mul.wide.u32 %rd4, %r1, 16;\n    add.s64 %rd4, %rd2, %rd4;"]
    for start in range(0, size, 2048):
        lines.append(f"    ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r3+{start}];")
        lines.append(f"    st.global.v4.b32 [%rd4+{start}], {{%r4, %r5, %r6, %r7}};")
    return "\n".join(lines) + "\n"


LOAD = (
    f"    mov.u32 %r8, {AT};\n"
    "    @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
    " [%r8], [%rd1], {size}, [%r2];\n"
)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_bulk_load_brings_contiguous_bytes(seed):
    source = torch.randn(512)
    body = INIT + expect(2048) + LOAD.format(size=2048) + WAIT + show(2048)
    assert torch.equal(execute(body, source, nans(512), seed=seed), source)


def test_until_its_mbarrier_completes_a_target_is_nan():
    body = INIT + expect(2048) + LOAD.format(size=2048) + show(2048) + WAIT
    assert execute(body, torch.randn(512), nans(512).zero_()).isnan().all()


def refused(body, message, source=None, box=bytes(128)):
    source = torch.randn(1024) if source is None else source
    with pytest.raises(ptx.PtxError, match=message):
        execute(body, source, nans(1024), box)


def test_fewer_bytes_than_announced_are_a_deadlock():
    body = INIT + expect(2064) + LOAD.format(size=2048) + WAIT
    refused(body, "0 of 1 arrivals and 16 bytes to come")


def test_a_copy_that_nobody_waits_for_is_refused():
    body = INIT + expect(2048) + LOAD.format(size=2048)
    refused(body, r"a block ended while the bulk copy of line \d+ still fills")


def test_storing_to_the_target_in_flight_is_refused():
    store = f"    mov.u32 %r9, {AT};\n    st.shared.b32 [%r9], %r1;\n"
    body = INIT + expect(2048) + LOAD.format(size=2048) + BARRIER + store + WAIT
    refused(body, r"line \d+ wrote to the target of the copy of line \d+ in flight")


def test_a_target_stored_to_before_must_be_fenced():
    body = fill(2048).replace(FENCE, "") + INIT + expect(2048)
    body += LOAD.format(size=2048).replace(f"{AT}", "1040") + WAIT
    refused(body, "may not see what line")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((" 2048, [", " 2040, ["), "must have a multiple of 16 bytes, got 2040"),
        ((f"{AT}", f"{AT + 8}"), "shared memory at a multiple of 16 bytes"),
        (("[%rd1]", "[%rd1+8]"), "global memory at a multiple of 16 bytes"),
        (("[%rd1]", "[%rd1+4096]"), "outside of all tensors"),
        ((f"{AT}", "65536"), "outside of the 65536 of the block"),
        (("[%r2]", "[%r2+8]"), "there is no mbarrier at this address"),
        (("[%r2]", "[%r2+4]"), "an mbarrier must be at a multiple of 8"),
    ],
)
def test_a_bulk_load_must_fit(change, message):
    load = LOAD.format(size=2048).replace(*change)
    refused(INIT + expect(2048) + load + WAIT, message)


def tensor_load(corner):
    coordinates = ", ".join(f"%r{20 + i}" for i in range(len(corner)))
    moves = "".join(f"    mov.b32 %r{20 + i}, {x};\n" for i, x in enumerate(corner))
    return moves + (
        f"    mov.u32 %r8, {AT};\n    mov.b64 %rd5, map;\n    cvta.param.u64 %rd5, %rd5;\n"
        f"    @%p1 cp.async.bulk.tensor.{len(corner)}d.shared::cluster.global"
        f".mbarrier::complete_tx::bytes [%r8], [%rd5, {{{coordinates}}}], [%r2];\n"
    )


def a_map(tensor, box, kind=BF16, swizzle=3):
    """Of a contiguous tensor; its last dimension is the map's first."""
    size = tensor.element_size()
    strides = [stride * size for stride in tensor.stride()[::-1][1:]]
    sizes = tensor.shape[::-1]
    return tensor_map.encode(
        kind, tensor.data_ptr(), sizes, strides, box, (1,) * len(box), swizzle=swizzle
    )


CORNERS = [(0, 0, 0, 0, 0), (64, 5, 1, 0, 1), (64, -3, 1, 2, 1), (0, 14, 0, 0, 1), (96, 0, 0, 0, 0)]


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("seed", [None, 0])
def test_a_box_of_five_dimensions_arrives_swizzled_with_zeros_outside(corner, seed):
    torch.manual_seed(0)
    tensor = torch.randn(2, 3, 2, 20, 128).to(torch.bfloat16)
    box = (64, 16, 1, 2, 1)
    body = INIT + expect(4096) + tensor_load(corner) + WAIT + show(4096)
    result = torch.zeros(2048, dtype=torch.bfloat16)
    execute(body, tensor, result, a_map(tensor, box), seed=seed)
    x, rows, _, planes, _ = box
    for plane in range(planes):
        for row in range(rows):
            where = corner[4], corner[3] + plane, corner[2], corner[1] + row
            line = AT + (plane * rows + row) * 128
            inside = all(0 <= i < n for i, n in zip(where, tensor.shape, strict=False))
            for column in range(x):
                got = result[(permuted(line + column * 2, 128) - AT) // 2]
                is_there = inside and corner[0] + column < 128
                assert got == (tensor[(*where, corner[0] + column)] if is_there else 0)


def test_a_box_without_swizzle_arrives_in_rows():
    tensor = torch.randn(40, 64)
    body = INIT + expect(2048) + tensor_load((16, 3)) + WAIT + show(2048)
    result = execute(body, tensor, nans(512), a_map(tensor, (32, 16), FLOAT32, swizzle=0))
    assert torch.equal(result.view(16, 32), tensor[3:19, 16:48])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((f"{AT}", f"{AT + 64}"), "a box must begin at a multiple of 128"),
        (("mov.b64 %rd5, map", "mov.b64 %rd5, source"), "must come from the encoder"),
        (("2d.shared", "3d.shared"), "3 dimensions needs as many coordinates"),
    ],
)
def test_a_tensor_load_must_fit(change, message):
    tensor = torch.randn(40, 64)
    load = tensor_load((16, 3)).replace(*change)
    box = a_map(tensor, (32, 16), FLOAT32, swizzle=0)
    refused(INIT + expect(2048) + load + WAIT, message, tensor, box)


def test_a_tensor_larger_than_the_launch_knows_is_refused():
    tensor = torch.randn(40, 64)
    box = a_map(tensor, (32, 16), FLOAT32, swizzle=0)
    refused(INIT + expect(2048) + tensor_load((0, 0)) + WAIT, "reaches out", tensor[:4], box)


GROUP = "    @%p1 cp.async.bulk.commit_group;\n"
DONE = "    @%p1 cp.async.bulk.wait_group 0;\n"
READ = "    @%p1 cp.async.bulk.wait_group.read 0;\n"
ADD = "    @%p1 cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd2], [%r2], 2048;\n"


def test_a_bulk_sum_adds_to_global_memory():
    source, result = torch.randn(512), torch.randn(512)
    expected = result + source
    assert torch.equal(execute(fill(2048) + ADD + GROUP + DONE, source, result), expected)


def test_a_bulk_sum_takes_subnormal_numbers_for_zero():
    source, result = torch.full((512,), 1e-40), torch.full((512,), -1e-40)
    execute(fill(2048) + ADD + GROUP + DONE, source, result)
    assert (result == 0).all()


def test_a_bulk_sum_completes_no_earlier_than_its_wait():
    look = (
        "    mul.wide.u32 %rd4, %r1, 4;\n    add.s64 %rd4, %rd2, %rd4;\n"
        "    ld.global.b32 %r9, [%rd4];\n"
    )
    put = "    st.global.b32 [%rd4+2048], %r9;\n"
    source, result = torch.ones(512), torch.zeros(1024)
    execute(fill(2048) + ADD + GROUP + READ + look + DONE + put, source, result)
    assert (result[:512] == 1).all()
    assert (result[512:640] == 0).all()


def test_the_source_of_a_bulk_sum_must_be_fenced():
    refused(fill(2048).replace(FENCE, "") + ADD + GROUP + DONE, "may not see what line")


@pytest.mark.parametrize("wait", [DONE, READ])
def test_the_source_of_a_bulk_sum_must_not_change_before_it_is_read(wait):
    change = "    st.shared.b32 [%r3], %r1;\n"
    body = fill(2048) + ADD + GROUP
    refused(body + change + wait, r"source of the bulk copy of line \d+ changed")
    execute(body + wait + BARRIER + change, torch.ones(512), torch.zeros(512))


def test_a_block_must_not_end_before_its_shared_memory_is_read():
    refused(fill(2048) + ADD + GROUP, r"the bulk copy of line \d+ still reads")
    refused(fill(2048) + ADD + DONE, r"the bulk copy of line \d+ still reads")


def test_a_sum_that_is_only_read_is_complete_after_the_launch():
    result = execute(fill(2048) + ADD + GROUP + READ, torch.ones(512), torch.zeros(512))
    assert (result == 1).all()


def test_a_bulk_store_and_a_tensor_store():
    source = torch.randn(512)
    store = "    @%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd2], [%r2], 2048;\n"
    assert torch.equal(execute(fill(2048) + store + GROUP + DONE, source, nans(512)), source)
    result = nans(20, 32)
    store = (
        "    mov.b64 %rd5, map;\n    cvta.param.u64 %rd5, %rd5;\n"
        "    mov.b32 %r20, 0;\n    mov.b32 %r21, 8;\n"
        "    @%p1 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group"
        " [%rd5, {%r20, %r21}], [%r2];\n"
    )
    box = a_map(result, (32, 16), FLOAT32, swizzle=0)
    execute(fill(2048) + store + GROUP + DONE, source, result, box)
    assert torch.equal(result[8:], source.view(16, 32)[:12]), "rows outside are not written"
    assert result[:8].isnan().all()


def test_other_reductions_of_contiguous_elements():
    source = torch.arange(512, dtype=torch.int32)
    result = torch.full((512,), 100, dtype=torch.int32)
    body = fill(2048) + ADD.replace("add.f32", "max.s32") + GROUP + DONE
    assert torch.equal(execute(body, source, result), torch.arange(512).clamp(min=100).int())


def test_a_reduction_of_a_box_changes_what_lies_inside():
    source, result = torch.randn(512), torch.randn(20, 32)
    expected = result.clone()
    expected[8:] += source.view(16, 32)[:12]
    body = (
        "    mov.b64 %rd5, map;\n    cvta.param.u64 %rd5, %rd5;\n"
        "    mov.b32 %r20, 0;\n    mov.b32 %r21, 8;\n"
        "    @%p1 cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group"
        " [%rd5, {%r20, %r21}], [%r2];\n"
    )
    box = a_map(result, (32, 16), FLOAT32, swizzle=0)
    assert torch.equal(execute(fill(2048) + body + GROUP + DONE, source, result, box), expected)


@pytest.mark.parametrize(
    "text",
    [
        "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u32"
        " [%r2], [%r2], 16, [%r2];",
        "cp.async.bulk.prefetch.L2.global [%rd1], 16;",
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
        " [%r2], [%r2], 16, [%r2];",
    ],
)
def test_other_forms_are_not_implemented(text):
    refused(text, "not implemented")
