// Arithmetic of one thread: rounding to 16-bit elements and back, exp2 and log2.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace mbt_fast::cuda {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }
inline float max_or_nan(float x, float y) {
  return std::isnan(x) || std::isnan(y) ? NAN : std::fmax(x, y);
}

template <class Element>
float to_float(uint16_t bits);
template <>
inline float to_float<Bfloat16>(uint16_t bits) {
  return float_of(uint32_t{bits} << 16);
}
template <>
inline float to_float<Float16>(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, rest = bits & 0x7fffu;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  const float size = rest < 0x400 ? std::ldexp(static_cast<float>(rest), -24)
                                  : float_of((rest << 13) + (112u << 23));
  return float_of(sign | bits_of(size));
}

template <class Element>
uint16_t rounded(float value);
template <>
inline uint16_t rounded<Bfloat16>(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint32_t bits = bits_of(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
template <>
inline uint16_t rounded<Float16>(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint16_t sign = static_cast<uint16_t>(bits_of(value) >> 16 & 0x8000);
  const float size = std::fabs(value);
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 6.103515625e-5f)  // denormal: a multiple of 2^-24
    return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 24)));
  const uint32_t bits = bits_of(size);
  const uint32_t up = (bits + 0xfff + (bits >> 13 & 1)) >> 13;
  return sign | static_cast<uint16_t>(up - (112u << 10));
}

template <class Element>
uint32_t pack(float first, float second) {
  return rounded<Element>(first) | uint32_t{rounded<Element>(second)} << 16;
}

}  // namespace mbt_fast::cuda
