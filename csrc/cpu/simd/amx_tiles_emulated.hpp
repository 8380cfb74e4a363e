// The operations of amx_tiles.hpp in AVX-512, in the order of additions that the Intel SDM prescribes.
//
// Slow, and only for tests. Like the hardware it stops a program that uses tiles without setting
// them up.
#pragma once

#include <cstdint>

#include "../common.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

constexpr int64_t kTileSide = 16;  // rows of a tile, and words of a row

struct TileState {
  bool is_set_up = false;
  alignas(64) uint32_t words[8][16][16] = {};
};
inline thread_local TileState tile_state;

class TilesOfThisThread {
 public:
  TilesOfThisThread() { tile_state = {true, {}}; }
  ~TilesOfThisThread() { tile_state.is_set_up = false; }
  TilesOfThisThread(const TilesOfThisThread&) = delete;
  TilesOfThisThread& operator=(const TilesOfThisThread&) = delete;
};

inline uint32_t (&tile(int number))[16][16] {
  if (!tile_state.is_set_up) __builtin_trap();
  return tile_state.words[number];
}

template <int kTile>
inline void zero_tile() {
  for (auto& row : tile(kTile)) store_words(row, splat_word(0));
}
template <int kTile>
inline void load_tile(const void* from, int64_t stride) {
  const uint32_t* words = static_cast<const uint32_t*>(from);
  for (auto& row : tile(kTile)) {
    store_words(row, load_words(words));
    words += stride;
  }
}
template <int kTile>
inline void store_tile(void* to, int64_t stride) {
  uint32_t* words = static_cast<uint32_t*>(to);
  for (const auto& row : tile(kTile)) {
    store_words(words, load_words(row));
    words += stride;
  }
}

inline Floats flush_denormals(Floats x) {
  const Words exponent = splat_word(0x7f800000);
  return _mm512_maskz_mov_ps(_mm512_test_epi32_mask(as_words(x), exponent), x);
}
inline Floats first_of_pairs(Words x) {
  return flush_denormals(as_floats(_mm512_slli_epi32(x, 16)));
}
inline Floats second_of_pairs(Words x) {
  return flush_denormals(as_floats(_mm512_and_si512(x, splat_word(0xffff0000))));
}

// First and second elements of pairs are summed apart, from zero; their sum is added to c.
template <int kC, int kA, int kB>
inline void multiply_tiles() {
  const auto &a = tile(kA), &b = tile(kB);
  for (int m = 0; m < kTileSide; ++m) {
    Floats first = zeros(), second = zeros();
    for (int k = 0; k < kTileSide; ++k) {
      const Words left = splat_word(a[m][k]), right = load_words(b[k]);
      first = flush_denormals(fma(first_of_pairs(left), first_of_pairs(right), first));
      second = flush_denormals(fma(second_of_pairs(left), second_of_pairs(right), second));
    }
    float* c = reinterpret_cast<float*>(tile(kC)[m]);
    const Floats sum = flush_denormals(add(first, second));
    store(c, flush_denormals(add(flush_denormals(load(c)), sum)));
  }
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
