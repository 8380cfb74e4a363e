// How two matrices are multiplied: as float32, or as pairs of bfloat16 (or, in split.hpp, as sums of
// such pairs).
//
// Both work on 32-bit words, so that packing and the micro-kernel are written once. A word holds
// kDepth neighbours along the dimension that a product sums over:
//
//   Fp32: one float32       Bf16Pairs: two bfloat16, the first in the lower half
//
// Packed is what a vector of elements becomes: kParts vectors of words.
//
// Four layouts of a matrix X [rows, D], named for the dimension that its words run along:
//
//   along d     X[r][d / kDepth]                 across rows   X[d / kDepth][r]
//   along rows  X[d][r / kDepth]                 across d      X[r / kDepth][d]
//
// "Along" is a left operand: the micro-kernel reads single words and broadcasts them. "Across" is a
// right operand: it reads vectors. One is the other's transpose, word by word.
#pragma once

#include "../common.hpp"
#include "../element.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

// The operands of a product, and its result.
struct Left {
  const uint32_t* words;
  int64_t stride;  // words from row to row
};
struct Right {
  const uint32_t* words;
  int64_t stride;  // words from step to step
};
struct Result {
  float* values;
  int64_t stride;
};

struct Fp32 {
  static constexpr int kDepth = 1;
  static constexpr int kParts = 1;
  static constexpr int kExpDegree = 6;
  static constexpr bool kRefinesDelta = true;
  static constexpr bool kScalesQueries = true;
  using Packed = Words;

  static MBT_FAST_INLINE Floats multiply_add(Words a, Words b, Floats c) {
    return fma(as_floats(a), as_floats(b), c);
  }
  // Words along d: n elements of one row from `row`, zeros after them. n may be 0 or less.
  template <class T>
  static MBT_FAST_INLINE Words load_along(const T* row, int64_t n) {
    return as_words(load_elements(row, n));
  }
  // Words across d of one row.
  template <class T>
  static MBT_FAST_INLINE Words load_across(const T* const* rows, int64_t d, int64_t n) {
    return rows[0] ? as_words(load_elements(rows[0] + d, n)) : splat_word(0);
  }
};

#if defined(__AVX512BF16__)

struct Bf16Pairs {
  static constexpr int kDepth = 2;
  static constexpr int kParts = 1;
  static constexpr int kExpDegree = 5;
  static constexpr bool kRefinesDelta = false;
  static constexpr bool kScalesQueries = false;
  using Packed = Words;

  static MBT_FAST_INLINE Floats multiply_add(Words a, Words b, Floats c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static MBT_FAST_INLINE Words load_along(const Bfloat16* row, int64_t n) {
    if (n >= 32) return _mm512_loadu_si512(row);
    if (n <= 0) return splat_word(0);
    return _mm512_maskz_loadu_epi16((1u << n) - 1, row);
  }
  static MBT_FAST_INLINE Words load_across(const Bfloat16* const* rows, int64_t d, int64_t n) {
    const Words low = rows[0] ? widen(load_halves(rows[0] + d, n)) : splat_word(0);
    const Words high = rows[1] ? widen(load_halves(rows[1] + d, n)) : splat_word(0);
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }
  // 32 bfloat16: those of x, then those of y.
  static MBT_FAST_INLINE Words narrow(Floats x, Floats y) {
    return reinterpret_cast<Words>(_mm512_cvtne2ps_pbh(y, x));
  }
  // ... stored as two rows of words along d
  static MBT_FAST_INLINE void store_rows(Words narrowed, uint32_t* to, int64_t stride) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(narrowed));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + stride),
                        _mm512_extracti64x4_epi64(narrowed, 1));
  }
  // ... and the same as pairs: word i holds x[i] and y[i].
  static MBT_FAST_INLINE Words pair(Words narrowed) {
    const Words order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, narrowed);
  }
};

#endif

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
