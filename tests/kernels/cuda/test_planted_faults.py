"""Faults planted in the PTX of the kernels are caught, by the executor or by the tolerance rule."""

import re
from typing import NamedTuple

import pytest
import torch
from attention_cases import Case
from hopper_calls import assert_gradients_within_tolerance, assert_outputs_within_tolerance

pytestmark = pytest.mark.native

PADDED = Case(1, (86,), 4, 1, 64, ((30,),))  # both groups have rows, and padding has to be zeroed
RING = Case(1, (20,), 4, 3, 64, ((20,),))  # three items of a block that has two buffers
WRONG, NAN = "exceeds", "not finite"  # caught by the tolerance rule


def drop(pattern):
    """Leave out an instruction, wherever it stands."""
    return replace(rf"^[^\n/]*{pattern}[^;\n]*;$", "")


def replace(pattern, by):
    def edit(text):
        edited, count = re.subn(pattern, by, text, flags=re.MULTILINE)
        if not count:
            raise LookupError(f"nothing in the PTX is {pattern}")
        return edited

    return edit


def add_to_constants(pattern, amount):
    return replace(pattern, lambda found: str(int(found[0]) + amount))


# A descriptor's upper half: stride 1024 in units of 16 bytes, and the code of the swizzle.
DESCRIPTORS = rf"\b{(0x40000040 << 32) // 10**9}\d{{9}}\b"
PARITY = r"(mbarrier\.try_wait\S+ complete, \[%\w+\]), (%\w+);"


class Fault(NamedTuple):
    kernel: str
    edit: object
    caught: str  # by this message
    case: Case = PADDED


FAULTS = {
    "zeros of padding without a fence of proxies": Fault(
        "fwd", drop(r"fence\.proxy\.async"), "no fence.proxy.async follows"
    ),
    "dS without a fence of proxies": Fault(
        "keys", drop(r"fence\.proxy\.async"), "no fence.proxy.async follows"
    ),
    "parities swapped": Fault(
        "fwd",
        replace(PARITY, r".reg .b32 other;\nxor.b32 other, \2, 1;\n\1, other;"),
        "a block ended while the bulk copy",
    ),
    "stride of a descriptor halved": Fault(
        "fwd", add_to_constants(DESCRIPTORS, -(0x20 << 32)), NAN
    ),
    "swizzle of 64 bytes in a descriptor": Fault(
        "fwd", add_to_constants(DESCRIPTORS, 0x40000000 << 32), NAN
    ),
    "keys of padding unmasked": Fault(
        "fwd", replace(r"selp\.f32 (.*), 0fFF800000, (%\w+), .*;", r"mov.f32 \1, \2;"), NAN
    ),
    "no wait for products": Fault("fwd", drop(r"wgmma\.wait_group"), NAN),
    "no commit of products": Fault("fwd", drop(r"wgmma\.commit_group"), NAN),
    "a thread does not commit": Fault(
        "fwd",
        replace(
            r"^\twgmma\.commit_group\.sync\.aligned;",
            "{ .reg .b32 own; .reg .pred others;\nmov.u32 own, %tid.x;\n"
            "setp.ne.u32 others, own, 133;\n@others wgmma.commit_group.sync.aligned; }",
        ),
        "all threads of a warp must execute this",
    ),
    "no fence of registers": Fault("keys", drop(r"wgmma\.fence"), "a wgmma.fence must come before"),
    "first product adds": Fault(
        "keys", replace(r"setp\.ne\.b32 p, (%\w+), 0;", r"setp.eq.b32 p, \1, 0;"), WRONG
    ),
    "operand not transposed": Fault("keys", replace(r"p, 1, 1, 1;", "p, 1, 1, 0;"), NAN),
    "groups do not meet behind zeros": Fault("fwd", drop(r"bar\.sync %r"), NAN),
    "groups do not meet behind dS": Fault(
        "keys", drop(r"bar\.sync %r"), "shared memory that the wgmma .* reads changed"
    ),
    "more bytes awaited than come": Fault(
        "fwd",
        replace(
            r"(mbarrier\.arrive\.expect_tx\S+ _, \[%\w+\]), (%\w+);",
            r"{ .reg .b32 more;\nadd.s32 more, \2, 16;\n\1, more; }",
        ),
        "all threads wait",
    ),
    "buffers free after seven warps": Fault(
        "fwd",
        replace(r"mov\.u32 \t(%\w+), 8;", r"mov.u32 \t\1, 7;"),
        "no wait has seen phase 0 complete",
        RING,
    ),
    "producer keeps its registers": Fault(
        "fwd", replace(r"(setmaxnreg\.dec\S+) 24;", r"\1 40;"), "all threads wait"
    ),
    "no wait before dq is stored again": Fault(
        "keys",
        drop(r"cp\.async\.bulk\.wait_group\.read"),
        "the source of the bulk copy .* changed before it was read",
        RING,
    ),
    "no commit of dq": Fault(
        "keys", drop(r"cp\.async\.bulk\.commit_group"), "a block ended while the bulk copy"
    ),
    "dq is not added": Fault("keys", drop(r"cp\.reduce\.async\.bulk"), WRONG),
    "matrices of dS swapped": Fault(
        "keys", replace(r"(stmatrix\S+ \[%\w+\], \{%\w+), (%\w+), (%\w+)", r"\1, \3, \2"), WRONG
    ),
    "quads that share a row are of other lanes": Fault(
        "fwd", replace(r"(shfl\.sync\.bfly\.b32 \t\S+, %\w+), %\w+,", r"\1, 4,"), WRONG
    ),
    "tensor coordinates swapped": Fault(
        "fwd", replace(r"\{(%\w+), (%\w+), (%\w+),", r"{\1, \3, \2,"), NAN
    ),
    "shared memory begins behind 512 bytes of another array": Fault(
        "fwd",
        replace(
            r"^\.extern \.shared \.align 1024 (.*);",
            r".shared .align 16 .b8 other[512];\n.extern .shared .align 16 \1;",
        ),
        "the kernel stopped itself",
    ),
    "stores one chunk too far": Fault(
        "fwd", replace(r"st\.global\.v4\.u32 \t\[(%\w+)\]", r"st.global.v4.u32 \t[\1+16]"),
        "outside of all tensors",
    ),
    "stores unaligned": Fault(
        "fwd", replace(r"st\.global\.v4\.u32 \t\[(%\w+)\]", r"st.global.v4.u32 \t[\1+8]"),
        "must be a multiple of 16",
    ),
}  # fmt: skip


def check(kernels, kernel, case):
    """Run a call in which the kernel takes part, by the tolerance rule."""
    kernels.emulate(1, 1)
    is_forward = kernel == "fwd"
    hold = assert_outputs_within_tolerance if is_forward else assert_gradients_within_tolerance
    hold(case, torch.bfloat16, poison=True, update="mean")


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(kernels, name):
    fault = FAULTS[name]
    kernels.change(f"_{fault.kernel}_kernel", fault.edit)
    with pytest.raises((RuntimeError, AssertionError), match=fault.caught):
        check(kernels, fault.kernel, fault.case)


@pytest.mark.parametrize(
    ("kernel", "case"), sorted({(fault.kernel, fault.case) for fault in FAULTS.values()})
)
def test_nothing_is_caught_where_there_is_no_fault(kernels, kernel, case):
    check(kernels, kernel, case)
