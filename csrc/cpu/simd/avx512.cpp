// AVX-512 F, BW, DQ, VL: all dtypes by float32 products.
#define MBT_FAST_ISA avx512
#include "avx512.hpp"
// The vectors and their product come before what is written on them.
#include "multiply.hpp"

#include "../linear_kernel.hpp"
#include "kernel_tables.hpp"

namespace mbt_fast::cpu {

const HeadKernels kAvx512[kDtypes] = {
    avx512::head_kernels<avx512::Fp32, float>(),
    avx512::head_kernels<avx512::Fp32, Bfloat16>(),
    avx512::head_kernels<avx512::Fp32, Float16>(),
};

const LayerKernels kAvx512Layer[kDtypes] = {
    avx512::layer_kernels<float>(),
    avx512::layer_kernels<Bfloat16>(),
    avx512::layer_kernels<Float16>(),
};

const LinearKernels kAvx512Linear[kDtypes] = {
    avx512::linear_kernels<avx512::Fp32, float>(),
    avx512::linear_kernels<avx512::Fp32, Bfloat16>(),
    avx512::linear_kernels<avx512::Fp32, Float16>(),
};

}  // namespace mbt_fast::cpu
