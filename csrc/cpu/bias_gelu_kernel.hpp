// GELU and its derivative: x cdf(x), and cdf(x) + x cdf'(x), in two approximations of the normal
// distribution.
//
// Both are computed for -|x|, where the exponential is at most 1, and mirrored: cdf(x) = 1 - cdf(-x).
// So nothing overflows, and the left tail keeps its relative precision, which 1 + tanh and 1 + erf
// lose. Infinities give what x * cdf(x) gives: gelu(-inf) is NaN, as in torch.
#pragma once

#include "simd/elementwise.hpp"
#include "simd/exp2.hpp"
#include "simd/kernels.hpp"
#include "simd/simd4.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

// Polynomials by the largest relative error that the dtype asks for.
template <class T>
constexpr int kExpDegree = sizeof(T) == 2 ? 5 : 6;

template <class V>
struct Normal {
  V cdf, slope;
};

// (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
template <class T>
struct TanhNormal {
  static constexpr float kSlope = 1.59576912161f;  // 2 sqrt(2 / pi)
  static constexpr float kCubic = 0.044715f;

  template <class V>
  static MBT_FAST_INLINE Normal<V> at(V x) {
    const V x2 = mul(x, x);
    const V u = mul(x, fma(x2, splat(kSlope * kCubic * kLog2E), splat(kSlope * kLog2E)));
    const V e = exp2<kExpDegree<T>>(minus_abs(u)), near = div(splat(1.0f), add(e, splat(1.0f)));
    const V far = mul(e, near);
    const V du = fma(x2, splat(3 * kSlope * kCubic), splat(kSlope));
    return {where_negative(x, far, near), mul(mul(far, near), du)};
  }
};

// cdf(-|x|) = exp(-x^2 / 2) t p(1 - 2 t), t = 1 / (1 + |x| / scale). The coefficients of p minimise
// the largest relative error over all x: 3.4e-8 for float32, 4.1e-6 for 16 bits.
template <int Bytes>
struct Erf;
template <>
struct Erf<4> {
  static constexpr int kDegree = 9;
  static constexpr float kScale = 4.0f;
  static constexpr float kCoefficients[] = {
      0.18882128f,    -0.15197410f,    0.096784477f,   -0.046631824f, 0.015098305f,
      -0.0018772929f, -0.00086809064f, 0.00038964087f, 3.1803582e-5f, -3.8636571e-5f};
};
template <>
struct Erf<2> {
  static constexpr int kDegree = 6;
  static constexpr float kScale = 3.6f;
  static constexpr float kCoefficients[] = {0.20746763f,   -0.15972366f,  0.091926014f,
                                            -0.036158583f, 0.0068174524f, 0.0012901117f,
                                            -0.00080212057f};
};

template <class T>
struct ErfNormal {
  using P = Erf<sizeof(T)>;
  static constexpr float kDensity = 0.398942280401f;  // 1 / sqrt(2 pi)

  template <class V>
  static MBT_FAST_INLINE Normal<V> at(V x) {
    const V e = exp2<kExpDegree<T>>(mul(mul(x, x), splat(-0.5f * kLog2E)));
    const V t = div(splat(1.0f), fma(minus_abs(x), splat(-1.0f / P::kScale), splat(1.0f)));
    const V y = fma(t, splat(-2.0f), splat(1.0f));
    V p = splat(P::kCoefficients[P::kDegree]);
    for (int i = P::kDegree - 1; i >= 0; --i) p = fma(p, y, splat(P::kCoefficients[i]));
    const V tail = mul(mul(e, t), p);
    return {where_negative(x, tail, sub(splat(1.0f), tail)), mul(e, splat(kDensity))};
  }
};

constexpr int64_t kStep = Simd4::kCount * kLanes;

// The next kStep elements, of which n exist.
template <class T>
MBT_FAST_INLINE Simd4 load_simd4(const T* from, int64_t n) {
  Simd4 loaded;
  for (int i = 0; i < Simd4::kCount; ++i) {
    loaded.of[i] = load_elements(from + i * kLanes, n - i * kLanes);
  }
  return loaded;
}

template <class T>
MBT_FAST_INLINE void store_simd4(T* to, const Simd4& x, int64_t n) {
  for (int i = 0; i < Simd4::kCount; ++i) store_elements(to + i * kLanes, x.of[i], n - i * kLanes);
}

template <class T>
MBT_FAST_INLINE Simd4 load_biased(const T* x, const float* bias, int64_t i, int64_t n) {
  const Simd4 value = load_simd4(x + i, n);
  return bias ? add(value, load_simd4(bias + i, n)) : value;
}

template <class Approximation, class T>
void bias_gelu_fwd(const void* x, const float* bias, int64_t count, void* out) {
  for_each_vector<kStep>(count, [=](int64_t i, int64_t n) MBT_FAST_INLINE_LAMBDA {
    const Simd4 value = load_biased(static_cast<const T*>(x), bias, i, n);
    store_simd4(static_cast<T*>(out) + i, mul(value, Approximation::at(value).cdf), n);
  });
}

template <class Approximation, class T>
void bias_gelu_bwd(const void* x, const float* bias, const void* dout, int64_t count, void* dx,
                   float* dbias) {
  for_each_vector<kStep>(count, [=](int64_t i, int64_t n) MBT_FAST_INLINE_LAMBDA {
    const Simd4 value = load_biased(static_cast<const T*>(x), bias, i, n);
    const Normal<Simd4> normal = Approximation::at(value);
    const Simd4 slope = fma(value, normal.slope, normal.cdf);
    const Simd4 gradient = mul(load_simd4(static_cast<const T*>(dout) + i, n), slope);
    store_simd4(static_cast<T*>(dx) + i, gradient, n);
    if (dbias) store_simd4(dbias + i, add(load_simd4(dbias + i, n), gradient), n);
  });
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
