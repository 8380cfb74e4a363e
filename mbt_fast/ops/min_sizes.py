"""From which size on the C++ kernels win, in spite of a launcher in Python.

By instruction set, op and dtype: rows of the longest stream in attention, multiply-adds in
``linear``, elements in the other ops. A dtype without an entry is left to torch. The figures come
from ``benchmarks/results``, and tests hold them to what is recorded there; AMX has no record, and
takes those of AVX512-BF16.

LayerNorm in float32 waits for memory, whoever computes it.
"""

from torch import bfloat16, float16, float32

_AVX512 = {
    "bottleneck_attention": {bfloat16: 32, float32: 48, float16: 16},
    "bias_gelu": {bfloat16: 2**16, float32: 2**16, float16: 2**16},
    "add_layer_norm": {bfloat16: 2**20},
    "residual_add": {bfloat16: 2**20},
    "linear": {float32: 2**23},  # in bfloat16 as fast as torch's, and not always
}
# A sum of bfloat16, with or without its norm, is slower forward than torch's.
_AVX2 = {
    "bottleneck_attention": {bfloat16: 48, float32: 48, float16: 16},
    "bias_gelu": _AVX512["bias_gelu"],
    "add_layer_norm": {},
    "residual_add": {},
    "linear": {float32: 2**26},
}
CPU_MIN_SIZE = {
    **dict.fromkeys(("amx", "amx_emulated", "avx512_bf16", "avx512"), _AVX512),
    "avx2": _AVX2,
}
