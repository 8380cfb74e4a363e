// Vectors of 8 float32 and of 8 words, for AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "../common.hpp"
#include "../element.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

using Floats = __m256;
using Words = __m256i;
constexpr int kLanes = 8;
constexpr int kRegisters = 16;

MBT_FAST_INLINE Floats splat(float x) { return _mm256_set1_ps(x); }
MBT_FAST_INLINE Floats zeros() { return _mm256_setzero_ps(); }
MBT_FAST_INLINE Floats load(const float* from) { return _mm256_loadu_ps(from); }
MBT_FAST_INLINE void store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
MBT_FAST_INLINE Words load_words(const uint32_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
MBT_FAST_INLINE void store_words(uint32_t* to, Words x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x);
}
MBT_FAST_INLINE Words splat_word(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
MBT_FAST_INLINE Floats as_floats(Words x) { return _mm256_castsi256_ps(x); }
MBT_FAST_INLINE Words as_words(Floats x) { return _mm256_castps_si256(x); }

MBT_FAST_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
MBT_FAST_INLINE Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
MBT_FAST_INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
MBT_FAST_INLINE Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
MBT_FAST_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
MBT_FAST_INLINE Floats fms(Floats a, Floats b, Floats c) { return _mm256_fmsub_ps(a, b, c); }
MBT_FAST_INLINE Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
// Parts of exp2, for x below 128. Powers below the normal numbers become 0, and so does that of
// -infinity.
MBT_FAST_INLINE Floats finite_exponent(Floats x) {
  return max(splat(-127.0f), x);  // the second operand wins if it is NaN
}
MBT_FAST_INLINE Floats fraction(Floats x) { return sub(x, _mm256_floor_ps(x)); }
// p * 2^floor(x). Added to 2^23, the biased exponent lies in the lowest bits.
MBT_FAST_INLINE Floats times_power_of_floor(Floats p, Floats x) {
  const Words exponent = as_words(add(_mm256_floor_ps(x), splat(8388608.0f + 127.0f)));
  return mul(p, as_floats(_mm256_slli_epi32(exponent, 23)));
}
MBT_FAST_INLINE Floats minus_abs(Floats x) { return _mm256_or_ps(x, splat(-0.0f)); }
MBT_FAST_INLINE Floats where_negative(Floats x, Floats a, Floats b) {  // a where x has a sign, else b
  return _mm256_blendv_ps(b, a, x);
}
MBT_FAST_INLINE bool any_greater(Floats a, Floats b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
}
MBT_FAST_INLINE float sum_lanes(Floats x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

MBT_FAST_INLINE Words first(int64_t n) {  // a mask of the first n lanes
  const Words lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(splat_word(static_cast<uint32_t>(n)), lane);
}
MBT_FAST_INLINE Floats keep_first(Floats x, int64_t count) {  // lanes from count on become 0
  return count >= 8 ? x : _mm256_and_ps(x, as_floats(first(count)));
}

// The first n elements from `from` as float32, zeros after them. n may be 0 or less.
MBT_FAST_INLINE Floats load_elements(const float* from, int64_t n) {
  return n >= 8 ? load(from) : n <= 0 ? zeros() : _mm256_maskload_ps(from, first(n));
}
MBT_FAST_INLINE __m128i load_halves(const void* from, int64_t n) {
  if (n >= 8) return _mm_loadu_si128(static_cast<const __m128i*>(from));
  alignas(16) uint16_t halves[8] = {};
  if (n > 0) __builtin_memcpy(halves, from, static_cast<size_t>(n) * 2);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(halves));
}
MBT_FAST_INLINE Floats load_elements(const Bfloat16* from, int64_t n) {
  return as_floats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_halves(from, n)), 16));
}
MBT_FAST_INLINE Floats load_elements(const Float16* from, int64_t n) {
  return _mm256_cvtph_ps(load_halves(from, n));
}

MBT_FAST_INLINE void store_elements(float* to, Floats x, int64_t n) {
  if (n >= 8) return store(to, x);
  if (n > 0) _mm256_maskstore_ps(to, first(n), x);
}
MBT_FAST_INLINE void store_halves(void* to, __m128i x, int64_t n) {
  if (n >= 8) return _mm_storeu_si128(static_cast<__m128i*>(to), x);
  alignas(16) uint16_t halves[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(halves), x);
  if (n > 0) __builtin_memcpy(to, halves, static_cast<size_t>(n) * 2);
}
// Round to nearest even, by integers.
MBT_FAST_INLINE void store_elements(Bfloat16* to, Floats x, int64_t n) {
  const Words bits = as_words(x);
  const Words odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), splat_word(1));
  const Words rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, splat_word(0x7fff)));
  const Words nan = as_words(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const Words safe = _mm256_blendv_epi8(rounded, splat_word(0x7fc00000), nan);
  const Words high = _mm256_srli_epi32(safe, 16);
  store_halves(to, _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)),
               n);
}
MBT_FAST_INLINE void store_elements(Float16* to, Floats x, int64_t n) {
  store_halves(to, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), n);
}

// Transpose 8 x 8 words in place: by pairs, fours, and then halves.
MBT_FAST_INLINE void transpose(Words (&r)[kLanes]) {
  Words t[kLanes];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
