// The kernels of amx.cpp on emulated tiles: for tests, on machines without AMX.
#define MBT_FAST_ISA amx_emulated
#include "simd_avx512.hpp"
// The vectors, the tiles and their product come before what is written on them, in this order.
#include "tiles_emulated.hpp"
#include "multiply_by_tiles.hpp"

#include "tiled_heads.hpp"

namespace mbt_fast::cpu {

const HeadKernels kAmxEmulated[kDtypes] = {
    amx_emulated::split_kernels<amx_emulated::Split<3>, float, kFloat32>(),
    amx_emulated::pairs_kernels(),
    amx_emulated::split_kernels<amx_emulated::Split<2>, Float16, kFloat16>(),
};

}  // namespace mbt_fast::cpu
