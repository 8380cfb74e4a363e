// AVX2, FMA and F16C: all dtypes by float32 products.
#define MBT_FAST_ISA avx2
#include "avx2.hpp"
// The vectors and their product come before what is written on them.
#include "multiply.hpp"

#include "../linear_kernel.hpp"
#include "kernel_tables.hpp"

namespace mbt_fast::cpu {

const HeadKernels kAvx2[kDtypes] = {
    avx2::head_kernels<avx2::Fp32, float>(),
    avx2::head_kernels<avx2::Fp32, Bfloat16>(),
    avx2::head_kernels<avx2::Fp32, Float16>(),
};

const LayerKernels kAvx2Layer[kDtypes] = {
    avx2::layer_kernels<float>(),
    avx2::layer_kernels<Bfloat16>(),
    avx2::layer_kernels<Float16>(),
};

const LinearKernels kAvx2Linear[kDtypes] = {
    avx2::linear_kernels<avx2::Fp32, float>(),
    avx2::linear_kernels<avx2::Fp32, Bfloat16>(),
    avx2::linear_kernels<avx2::Fp32, Float16>(),
};

}  // namespace mbt_fast::cpu
