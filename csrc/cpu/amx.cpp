// AMX-bf16: bfloat16 on tiles, float32 and float16 as sums of bfloat16 parts.
#define MBT_FAST_ISA amx
#include "simd_avx512.hpp"
// The vectors and the tiles come before what is written on them.
#include "tiles.hpp"
// ...
#include "multiply_by_tiles.hpp"
// ...
#include "tiled_heads.hpp"

namespace mbt_fast::cpu {

const HeadKernels kAmx[kDtypes] = {
    amx::split_kernels<amx::Split<3>, float, kFloat32>(),
    amx::pairs_kernels(),
    amx::split_kernels<amx::Split<2>, Float16, kFloat16>(),
};

}  // namespace mbt_fast::cpu
