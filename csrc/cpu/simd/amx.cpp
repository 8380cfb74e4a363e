// AMX-bf16: bfloat16 on tiles, float32 and float16 as sums of bfloat16 parts.
//
// Has not run on AMX hardware: tested on emulated tiles, and its instructions by traps.
#define MBT_FAST_ISA amx
#include "avx512.hpp"
// The vectors, the tiles and their product come before what is written on them, in this order.
#include "amx_tiles.hpp"
#include "amx_multiply.hpp"

#include "bottleneck_attention_amx.hpp"

namespace mbt_fast::cpu {

const HeadKernels kAmx[kDtypes] = {
    amx::split_kernels<amx::Bf16Split<3>, float, kFloat32>(),
    amx::bf16_pairs_kernels(),
    amx::split_kernels<amx::Bf16Split<2>, Float16, kFloat16>(),
};

}  // namespace mbt_fast::cpu
