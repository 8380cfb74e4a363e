// float32 as a sum of bfloat16 parts, for products on tiles.
//
//   x = part 0 + part 1 + part 2     8 + 8 + 8 of the 24 bits, each cut off what the former left:
//                                    exact, without rounding, and with the sign of x
//   x y = sum of part i of x times part j of y over i + j < 3
//
// The three products left out are below 2^-22 of x y; the dot products round to float32 on their
// way as any float32 product does. Two parts hold a float16, and 16 bits of a probability, which
// then becomes a float16: four products.
//
// The parts of a matrix lie one after another along the words that a product sums over:
//
//   left   [rows][parts][steps]      right   [parts][steps][n]
//
// so transposes need not know them. An infinity has no such sum (its other parts, and 0 times it,
// would be NaN): heads with infinities are left to float32 products, see bottleneck_attention_amx.hpp.
#pragma once

#include "pack.hpp"
#include "products.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

template <int kCount>
struct PartsOf {
  Words part[kCount];
};

template <int kCount>
MBT_FAST_INLINE void store_parts(uint32_t* to, int64_t apart, const PartsOf<kCount>& x) {
  for (int i = 0; i < kCount; ++i) store_words(to + i * apart, x.part[i]);
}

template <int kCount>
struct Bf16Split {
  static constexpr int kDepth = 2;
  static constexpr int kParts = kCount;
  static constexpr int kExpDegree = 6;
  static constexpr bool kRefinesDelta = true;
  static constexpr bool kScalesQueries = false;
  using Packed = PartsOf<kParts>;

  template <class T>
  static MBT_FAST_INLINE Packed load_along(const T* row, int64_t n) {
    return narrow(load_elements(row, n), load_elements(row + kLanes, n - kLanes));
  }
  template <class T>
  static MBT_FAST_INLINE Packed load_across(const T* const* rows, int64_t d, int64_t n) {
    const Floats x = rows[0] ? load_elements(rows[0] + d, n) : zeros();
    const Floats y = rows[1] ? load_elements(rows[1] + d, n) : zeros();
    return pair(narrow(x, y));
  }
  // Per part 32 bfloat16: those of x, then those of y.
  static MBT_FAST_INLINE Packed narrow(Floats x, Floats y) {
    Packed parts;
    for (Words& part : parts.part) {
      const Floats cut_x = upper_half(x), cut_y = upper_half(y);
      part = upper_halves(as_words(cut_x), as_words(cut_y));
      x = sub(x, cut_x);
      y = sub(y, cut_y);
    }
    return parts;
  }
  static MBT_FAST_INLINE void store_rows(const Packed& narrowed, uint32_t* to, int64_t stride) {
    for (int i = 0; i < kParts; ++i) {
      Bf16Pairs::store_rows(narrowed.part[i], to + i * (stride / kParts), stride);
    }
  }
  static MBT_FAST_INLINE Packed pair(Packed narrowed) {
    for (Words& part : narrowed.part) part = Bf16Pairs::pair(part);
    return narrowed;
  }

 private:
  static MBT_FAST_INLINE Floats upper_half(Floats x) {
    return as_floats(_mm512_and_si512(as_words(x), splat_word(0xffff0000)));
  }
  static MBT_FAST_INLINE Words upper_halves(Words x, Words y) {
    const Words odd = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35,
                                       33, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(x, odd, y);
  }
};

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
