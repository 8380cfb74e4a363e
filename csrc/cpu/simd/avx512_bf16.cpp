// AVX512-BF16: bfloat16 by dot products of pairs, and rounded by one instruction.
#define MBT_FAST_ISA avx512_bf16
#include "avx512.hpp"
// The vectors and their product come before what is written on them.
#include "multiply.hpp"

#include "../linear_kernel.hpp"
#include "kernel_tables.hpp"

namespace mbt_fast::cpu {

const HeadKernels kAvx512Bfloat16 = avx512_bf16::head_kernels<avx512_bf16::Bf16Pairs, Bfloat16>();
const LayerKernels kAvx512Bfloat16Layer = avx512_bf16::layer_kernels<Bfloat16>();
const LinearKernels kAvx512Bfloat16Linear =
    avx512_bf16::linear_kernels<avx512_bf16::Bf16Pairs, Bfloat16>();

}  // namespace mbt_fast::cpu
