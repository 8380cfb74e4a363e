// The kernels of amx.cpp on emulated tiles: for tests, on machines without AMX.
#define MBT_FAST_ISA amx_emulated
#include "avx512.hpp"
// The vectors, the tiles and their product come before what is written on them, in this order.
#include "amx_tiles_emulated.hpp"
#include "amx_multiply.hpp"

#include "bottleneck_attention_amx.hpp"

namespace mbt_fast::cpu {

const HeadKernels kAmxEmulated[kDtypes] = {
    amx_emulated::split_kernels<amx_emulated::Bf16Split<3>, float, kFloat32>(),
    amx_emulated::bf16_pairs_kernels(),
    amx_emulated::split_kernels<amx_emulated::Bf16Split<2>, Float16, kFloat16>(),
};

}  // namespace mbt_fast::cpu
