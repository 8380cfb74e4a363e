"""From which size on the C++ kernels win, in spite of a launcher in Python.

By instruction set, op and dtype: rows of the longest stream in attention, multiply-adds in
``linear``, elements in the other ops. A dtype without an entry is left to torch. The figures come
from ``benchmarks/results``, and tests hold them to what is recorded there; AMX has no record, and
takes those of AVX512-BF16.

LayerNorm in float32 waits for memory, whoever computes it. float16, which is not in the records of
attention, is computed as float32.
"""

from torch import bfloat16, float16, float32

_AVX512_BF16 = {
    "bottleneck_attention": {bfloat16: 32, float32: 48, float16: 48},
    "bias_gelu": {bfloat16: 2**16, float32: 2**16, float16: 2**16},
    "add_layer_norm": {bfloat16: 2**20},
    "residual_add": {bfloat16: 2**20},
    "linear": {float32: 2**23, bfloat16: 2**28},
}
# Without instructions for bfloat16, which torch then multiplies slowly.
_AVX512 = _AVX512_BF16 | {"linear": {float32: 2**23, bfloat16: 2**22}}
_AVX2 = _AVX512 | {"bottleneck_attention": {bfloat16: 48, float32: 128, float16: 128}}
CPU_MIN_SIZE = {
    **dict.fromkeys(("amx", "amx_emulated", "avx512_bf16"), _AVX512_BF16),
    "avx512": _AVX512,
    "avx2": _AVX2,
}
