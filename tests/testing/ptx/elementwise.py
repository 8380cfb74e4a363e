"""Instructions one by one: every thread has operands of its own, loaded from arrays."""

import numpy as np

from mbt_fast.testing import ptx

THREADS = 128
FRAME = """
.version 8.6
.target sm_80
.address_size 64
.visible .entry test({parameters})
{{
    .reg .pred %p<4>;
    .reg .b16 %rs<8>;
    .reg .b32 %r<32>;
    .reg .b64 %rd<16>;
    .shared .align 16 .b8 memory[{shared}];
    mov.u32 %r1, %tid.x;
{loads}
{body}
{store}
    ret;
}}
"""
SIZES = {"16": 2, "32": 4, "64": 8}
NAMES = {2: "%rs", 4: "%r", 8: "%rd"}
KINDS = {2: "b16", 4: "b32", 8: "b64"}


def execute(body, inputs, out, *, threads=THREADS, shared=4096, memory=None, seed=None):
    """Run a body in one block; thread i has ``inputs[k][i]`` in ``a``, ``b``, ..., sets ``d``.

    Args:
        body: PTX; ``{a}``, ``{b}``, ... and ``{d}`` stand for the registers.
        inputs: Arrays of the operands.
        out: dtype of the result.
        threads: Of the block.
        shared: Bytes of the array ``memory`` in shared memory.
        memory: What may be touched beside the arrays.
        seed: See ``ptx.launch``.
    """
    result = np.full(threads, 0xAB, np.uint8).repeat(np.dtype(out).itemsize).view(out)
    arrays = [np.ascontiguousarray(array) for array in inputs] + [result]
    names, lines = {}, []
    for place, (name, array) in enumerate(zip("abcefgd", arrays[:-1], strict=False)):
        size = array.itemsize
        names[name] = f"{NAMES[size]}{place + (4 if size == 4 else 1)}"
        lines.append(address(place, size))
        lines.append(f"    ld.global.{KINDS[size]} {names[name]}, [%rd15];")
    size = result.itemsize
    names["d"] = f"{NAMES[size]}{7 if size != 4 else 20}"
    store = f"{address(len(arrays) - 1, size)}\n    st.global.{KINDS[size]} [%rd15], {names['d']};"
    text = FRAME.format(
        parameters=", ".join(f".param .u64 p{i}" for i in range(len(arrays))),
        loads="\n".join(lines),
        body=body.format(**names),
        store=store,
        shared=shared,
    )
    windows = [(array.ctypes.data, array.nbytes) for array in arrays]
    pointers = [array.ctypes.data for array in arrays]
    ptx.launch(text, (1,), (threads,), pointers, ptx.Memory(windows), seed=seed)
    return result


def address(place, size):
    return (
        f"    ld.param.u64 %rd14, [p{place}];\n    mul.wide.u32 %rd15, %r1, {size};\n"
        "    add.s64 %rd15, %rd14, %rd15;"
    )
