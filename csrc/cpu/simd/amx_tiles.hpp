// Tiles of AMX: eight registers of 16 rows x 16 words (Intel SDM vol. 1, ch. 18; vol. 2, TDPBF16PS).
//
// Inline assembly, because the intrinsics of g++ 12 do not say that a tile's load reads memory.
// amx_tiles_emulated.hpp has the same operations in plain C++, for tests on machines without AMX.
#pragma once

#include <cstdint>

#include "../common.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

constexpr int64_t kTileSide = 16;  // rows of a tile, and words of a row

// The memory operand of ldtilecfg. Every tile has its full size: operands are padded instead.
struct alignas(64) TileShapes {
  uint8_t palette = 1;    // eight tiles of at most 16 rows of 64 bytes
  uint8_t start_row = 0;  // of a load that was interrupted
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};  // the last eight are reserved
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64);

// Tiles are this thread's while an object of this class lives, one head's time: set up once for
// hundreds of products, and released before the thread goes back to torch's pool, where live tiles
// would add 8 KiB to every context switch, and whose next user sets up shapes of its own.
class TilesOfThisThread {
 public:
  TilesOfThisThread() {
    static constexpr TileShapes kShapes;
    __asm__ volatile("ldtilecfg %0" : : "m"(kShapes) : "memory");
  }
  ~TilesOfThisThread() { __asm__ volatile("tilerelease" : : : "memory"); }
  TilesOfThisThread(const TilesOfThisThread&) = delete;
  TilesOfThisThread& operator=(const TilesOfThisThread&) = delete;
};

template <int kTile>
MBT_FAST_INLINE void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile) : "memory");
}

// Strides are in words from row to row.
template <int kTile>
MBT_FAST_INLINE void load_tile(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,4), %%tmm%c2"
                   :
                   : "r"(from), "r"(stride), "i"(kTile)
                   : "memory");
}
template <int kTile>
MBT_FAST_INLINE void store_tile(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,4)"
                   :
                   : "r"(to), "r"(stride), "i"(kTile)
                   : "memory");
}

// c [16][16] float32 += a [16][16 words] b [16 words][16], words of two bfloat16. Denormals count as
// zeros, in and out.
template <int kC, int kA, int kB>
MBT_FAST_INLINE void multiply_tiles() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                   :
                   : "i"(kC), "i"(kA), "i"(kB)
                   : "memory");
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
