"""Faults put into the PTX of the Triton kernels: the executor finds each, by the rule beside it.

So its silence about the unchanged kernels says something.
"""

import re
from typing import NamedTuple

import pytest
import torch
from attention_cases import Case, compare, make_qkv
from triton_device import triton_device

from mbt_fast.testing import ptx

pytestmark = pytest.mark.slow  # the compiler

CASE = Case(1, (300, 130), 4, 1, 64)  # as "long" of test_triton_executed.py
TOLERANCE = AssertionError, "exceeds|not finite"
HALF_OF_A_WARP = """{
    .reg .pred half;
    .reg .b32 lane;
    mov.u32 lane, %laneid;
    setp.lt.u32 half, lane, 16;
    @half bar.sync 0;
    }"""


class Fault(NamedTuple):
    kernel: str  # a part of its name
    pattern: str
    replacement: str
    found_by: tuple[type[Exception], str]
    arch: int = 80
    count: int = 1  # how many places; 0 is all


FAULTS = {
    "copies are not waited for": Fault("fwd", r"cp\.async\.wait_group\s+2;", "", TOLERANCE),
    "one group of copies too few is waited for": Fault(
        "fwd", r"(cp\.async\.wait_group)\s+2;", r"\1 3;", TOLERANCE
    ),
    "copies beyond the last row are not zeros": Fault(
        "fwd", r"(cp\.async\.c.*0x10), %r\d+;", r"\1;", (ptx.PtxError, "outside of all"), count=0
    ),
    "a barrier is missing": Fault(
        "dkdv", r"bar\.sync\s+0;", "", (ptx.PtxError, "no barrier between")
    ),
    "half of a warp comes to a barrier": Fault(
        "fwd", r"bar\.sync\s+0;", HALF_OF_A_WARP, (ptx.PtxError, "all threads of a warp")
    ),
    "a barrier waits for warps that do not exist": Fault(
        "delta", r"bar\.sync\s+0;", "bar.sync 0, 1024;", (ptx.PtxError, "all threads wait")
    ),
    "a matrix is not transposed": Fault("fwd", r"(ldmatrix.*)\.trans", r"\1", TOLERANCE, count=0),
    "a matrix begins two bytes late": Fault(
        "fwd", r"(ldmatrix.*\+)16384\]", r"\g<1>16386]", (ptx.PtxError, "a multiple of 16")
    ),
    "halves of an operand are exchanged": Fault(
        "dq", r"(mma\.sync.*\{ %r\d+, %r\d+, %r\d+, %r\d+ \}, \{ )(%r\d+), (%r\d+)( \}, \{)",
        r"\1\3, \2\4", TOLERANCE,
    ),
    "lanes reduce over the wrong distance": Fault(
        "fwd", r"(shfl\.sync\.bfly\.b32.*), 2, 31, -1;", r"\1, 4, 31, -1;", TOLERANCE
    ),
    "half of a warp is named in a shuffle": Fault(
        "fwd", r"(shfl\.sync\.bfly\.b32.*), -1;", r"\1, 65535;", (ptx.PtxError, "in the mask")
    ),
    "keys of no row count": Fault(
        "fwd", r"selp\.f32\s+(%r\d+), (%r\d+), 0fFF800000, %p\d+;", r"mov.b32 \1, \2;", TOLERANCE,
        count=0,
    ),
    "rows beyond the last are stored": Fault(
        "fwd", r"@%p\d+ (st\.global)", r"\1", (ptx.PtxError, "outside of all"), count=0
    ),
    "the async proxy is not told of stores": Fault(
        "fwd", r"fence\.proxy\.async.*;", "", (ptx.PtxError, "async proxy"), arch=90
    ),
    "a product is read before it is waited for": Fault(
        "fwd", r"wgmma\.wait_group.*;", "", (ptx.PtxError, "wait"), arch=90
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(name, monkeypatch):
    fault = FAULTS[name]
    error, message = fault.found_by
    places = []

    def run(launch):
        if fault.kernel in launch.name:
            text, changed = re.subn(fault.pattern, fault.replacement, launch.ptx, count=fault.count)
            places.append(changed)
            launch = launch._replace(ptx=text)
        launch.run()

    with triton_device(monkeypatch, fault.arch, run), pytest.raises(error, match=message):
        compare("triton", make_qkv(CASE, torch.bfloat16), CASE.slots, update="mean")
    assert any(places), "the pattern is nowhere in the kernel"
