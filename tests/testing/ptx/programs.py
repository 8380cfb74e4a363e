"""Small programs for sm_90a: a frame around what a test writes."""

import torch

from mbt_fast.testing import ptx

THREADS = 128
SHARED_BYTES = 65536
FRAME = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry test(.param .b64 source, .param .b64 result, .param .align 64 .b8 map[128])
.maxntid {threads}, 1, 1
.minnctapersm 1
{{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .b32 %r<64>;
    .reg .f32 %f<256>;
    .reg .b64 %rd<32>;
    .shared .align 1024 .b8 memory[{shared}];
    ld.param.b64 %rd1, [source];
    ld.param.b64 %rd2, [result];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, memory;
    setp.eq.u32 %p1, %r1, 0;
{body}
    ret;
}}
"""
# Copies the source to shared memory, 16 bytes per thread and turn, and shows it to the async proxy.
FENCE = "    fence.proxy.async.shared::cta;\n"
BARRIER = "    bar.sync 0;\n"


def fill(size):
    """The source goes to shared memory as it is."""
    lines = ["    mul.wide.u32 %rd3, %r1, 16;", "    add.s64 %rd3, %rd1, %rd3;"]
    lines += ["    shl.b32 %r3, %r1, 4;", "    add.s32 %r3, %r2, %r3;"]
    for start in range(0, size, 16 * THREADS):
        lines.append(f"    ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%rd3+{start}];")
        lines.append(f"    st.shared.v4.b32 [%r3+{start}], {{%r4, %r5, %r6, %r7}};")
    return "\n".join(lines) + "\n" + FENCE + BARRIER


def store(registers, kind="f32"):
    """Register i of thread t goes to element i * 128 + t of the result."""
    lines = ["    mul.wide.u32 %rd4, %r1, 4;", "    add.s64 %rd4, %rd2, %rd4;"]
    for i, register in enumerate(registers):
        lines.append(f"    st.global.{kind} [%rd4+{4 * THREADS * i}], {register};")
    return "\n".join(lines) + "\n"


def execute(body, source, result, tensor_map=bytes(128), *, threads=THREADS, blocks=1, seed=None):
    """Run a body on tensors; returns the result."""
    text = FRAME.format(body=body, shared=SHARED_BYTES, threads=threads)
    values = [source.data_ptr(), result.data_ptr(), tensor_map]
    ptx.launch(text, (blocks,), (threads,), values, ptx.Memory.of(source, result), seed=seed)
    return result


def nans(*shape):
    """A float32 result that nothing was written to."""
    return torch.full(shape, float("nan"))
