"""A launch: parameters, blocks, and what a kernel may touch."""

import pytest
import torch

pytest.importorskip("numpy", reason="the executor needs numpy")

from mbt_fast.testing import ptx

ADD = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry add(
    .param .u64 .ptr .global .align 4 a, .param .u64 b, .param .u64 out, .param .u32 n
)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<6>;
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3;
    ld.param.u32 %r5, [n];
    setp.ge.u32 %p1, %r4, %r5;
    @%p1 bra $done;
    mul.wide.u32 %rd1, %r4, 4;
    ld.param.u64 %rd2, [a];
    add.s64 %rd2, %rd2, %rd1;
    ld.global.f32 %f1, [%rd2];
    ld.param.u64 %rd3, [b];
    add.s64 %rd3, %rd3, %rd1;
    ld.global.f32 %f2, [%rd3+0];
    add.f32 %f3, %f1, %f2;
    ld.param.u64 %rd4, [out];
    add.s64 %rd4, %rd4, %rd1;
    st.global.f32 [%rd4], %f3;
$done:
    ret;
}
"""


def add(a, b, out, n, memory=None):
    pointers = [tensor.data_ptr() for tensor in (a, b, out)]
    memory = memory or ptx.Memory.of(a, b, out)
    ptx.launch(ADD, (-(-n // 96),), (96,), [*pointers, n], memory)


@pytest.mark.parametrize("n", [1, 96, 1000])
def test_sum_of_vectors_has_torchs_bits(n):
    a, b, out = torch.randn(n), torch.randn(n), torch.full((n,), float("nan"))
    add(a, b, out, n)
    assert torch.equal(out, a + b)


def test_touching_what_is_behind_a_tensor_names_line_and_thread():
    a, b, out = torch.randn(100), torch.randn(100), torch.empty(100)
    with pytest.raises(ptx.PtxError, match="outside of all tensors") as raised:
        add(a[:98], b, out, 100, ptx.Memory.of(a[:98], b, out))
    error = raised.value
    assert error.text == "ld.global.f32 %f1, [%rd2];".rstrip(";")
    assert ADD.splitlines()[error.line - 1].strip() == "ld.global.f32 %f1, [%rd2];"
    assert (error.cta, error.warp, error.lane) == ((1, 0, 0), 0, 2)
