// Vectors of 16 float32 and of 16 words, for AVX-512 F, BW, DQ and VL.
#pragma once

#include <immintrin.h>

#include "../common.hpp"
#include "../element.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

using Floats = __m512;
using Words = __m512i;
constexpr int kLanes = 16;
constexpr int kRegisters = 32;

MBT_FAST_INLINE Floats splat(float x) { return _mm512_set1_ps(x); }
MBT_FAST_INLINE Floats zeros() { return _mm512_setzero_ps(); }
MBT_FAST_INLINE Floats load(const float* from) { return _mm512_loadu_ps(from); }
MBT_FAST_INLINE void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
MBT_FAST_INLINE Words load_words(const uint32_t* from) { return _mm512_loadu_si512(from); }
MBT_FAST_INLINE void store_words(uint32_t* to, Words x) { _mm512_storeu_si512(to, x); }
MBT_FAST_INLINE Words splat_word(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
MBT_FAST_INLINE Floats as_floats(Words x) { return _mm512_castsi512_ps(x); }
MBT_FAST_INLINE Words as_words(Floats x) { return _mm512_castps_si512(x); }

MBT_FAST_INLINE Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
MBT_FAST_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
MBT_FAST_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
MBT_FAST_INLINE Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
MBT_FAST_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
MBT_FAST_INLINE Floats fms(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }
MBT_FAST_INLINE Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
// Parts of exp2, which the instructions define for infinities too.
MBT_FAST_INLINE Floats finite_exponent(Floats x) { return x; }
MBT_FAST_INLINE Floats fraction(Floats x) {  // x - floor(x); 0 for infinities
  return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
MBT_FAST_INLINE Floats times_power_of_floor(Floats p, Floats x) { return _mm512_scalef_ps(p, x); }
MBT_FAST_INLINE Floats minus_abs(Floats x) { return _mm512_or_ps(x, splat(-0.0f)); }
MBT_FAST_INLINE Floats where_negative(Floats x, Floats a, Floats b) {  // a where x has a sign, else b
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(as_words(x)), b, a);
}
MBT_FAST_INLINE bool any_greater(Floats a, Floats b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
}
MBT_FAST_INLINE float sum_lanes(Floats x) { return _mm512_reduce_add_ps(x); }

MBT_FAST_INLINE __mmask16 first(int64_t n) {  // a mask of the first n lanes
  return static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1);
}
MBT_FAST_INLINE Floats keep_first(Floats x, int64_t count) {  // lanes from count on become 0
  return _mm512_maskz_mov_ps(first(count), x);
}

// The first n elements from `from` as float32, zeros after them. n may be 0 or less.
MBT_FAST_INLINE Floats load_elements(const float* from, int64_t n) {
  return n >= 16 ? load(from) : n <= 0 ? zeros() : _mm512_maskz_loadu_ps(first(n), from);
}
MBT_FAST_INLINE __m256i load_halves(const void* from, int64_t n) {
  return n >= 16  ? _mm256_loadu_si256(static_cast<const __m256i*>(from))
         : n <= 0 ? _mm256_setzero_si256()
                  : _mm256_maskz_loadu_epi16(first(n), from);
}
MBT_FAST_INLINE Words widen(__m256i halves) { return _mm512_cvtepu16_epi32(halves); }
MBT_FAST_INLINE Floats load_elements(const Bfloat16* from, int64_t n) {
  return as_floats(_mm512_slli_epi32(widen(load_halves(from, n)), 16));
}
MBT_FAST_INLINE Floats load_elements(const Float16* from, int64_t n) {
  return _mm512_cvtph_ps(load_halves(from, n));
}

MBT_FAST_INLINE void store_elements(float* to, Floats x, int64_t n) {
  if (n >= 16) return store(to, x);
  if (n > 0) _mm512_mask_storeu_ps(to, first(n), x);
}
MBT_FAST_INLINE void store_halves(void* to, __m256i x, int64_t n) {
  if (n >= 16) return _mm256_storeu_si256(static_cast<__m256i*>(to), x);
  if (n > 0) _mm256_mask_storeu_epi16(to, first(n), x);
}
// Round to nearest even: 16 float32 to 16 bfloat16.
#if defined(__AVX512BF16__)
MBT_FAST_INLINE __m256i round_to_bfloat16(Floats x) {  // denormals become 0
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
}
#else
MBT_FAST_INLINE __m256i round_to_bfloat16(Floats x) {
  const Words bits = as_words(x);
  const Words odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), splat_word(1));
  const Words rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, splat_word(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const Words safe = _mm512_mask_mov_epi32(rounded, nan, splat_word(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(safe, 16));
}
#endif
MBT_FAST_INLINE void store_elements(Bfloat16* to, Floats x, int64_t n) {
  store_halves(to, round_to_bfloat16(x), n);
}
MBT_FAST_INLINE void store_elements(Float16* to, Floats x, int64_t n) {
  store_halves(to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), n);
}

// Transpose 16 x 16 words in place: by pairs, fours, and then 128-bit quarters.
MBT_FAST_INLINE void transpose(Words (&r)[kLanes]) {
  Words t[kLanes];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
