// LayerNorm of one row, forward and backward, in float32.
//
// Notation: normed = (x - mean) rstd, out = normed weight + bias, g = dout weight,
//
//   dx = rstd (g - mean(g) - normed mean(g normed)) + dsum
//
// The variance is the mean of squared deviations, in a pass of its own over a row that lies in the
// first cache: E[x^2] - mean^2 would cancel. Sums run in kSums chains, whose order does not depend on
// anything but C.
#pragma once

#include "common.hpp"
#include "simd/elementwise.hpp"
#include "simd/kernels.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

constexpr int kSums = 4;

// Sum of value(c, n, chain) over c = 0, kLanes, .. below count. At least n lanes are in the row; what
// lies beyond must be 0.
template <class Value>
MBT_FAST_INLINE float sum_over(int64_t count, const Value& value) {
  Floats sums[kSums] = {zeros(), zeros(), zeros(), zeros()};
  int64_t c = 0;
  for (; c + kSums * kLanes <= count; c += kSums * kLanes) {
    for (int i = 0; i < kSums; ++i) {
      sums[i] = add(sums[i], value(c + i * kLanes, static_cast<int64_t>(kLanes), i));
    }
  }
  for (; c < count; c += kLanes) sums[0] = add(sums[0], value(c, count - c, 0));
  return sum_lanes(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

template <class T>
void layer_norm_fwd(const NormRow& row) {
  const T* x = static_cast<const T*>(row.x);
  const float count = static_cast<float>(row.channels);
  const auto values = [&](int64_t c, int64_t n, int) MBT_FAST_INLINE_LAMBDA {
    return load_elements(x + c, n);
  };
  *row.mean = sum_over(row.channels, values) / count;
  const Floats mean = splat(*row.mean);
  const auto squares = [&](int64_t c, int64_t n, int) MBT_FAST_INLINE_LAMBDA {
    const Floats deviation = keep_first(sub(load_elements(x + c, n), mean), n);
    return mul(deviation, deviation);
  };
  *row.rstd = 1.0f / __builtin_sqrtf(sum_over(row.channels, squares) / count + row.eps);
  const Floats rstd = splat(*row.rstd);
  T* to = static_cast<T*>(row.out);
  const float *weight = row.weight, *bias = row.bias;
  for_each_vector<kLanes>(row.channels, [=](int64_t c, int64_t n) MBT_FAST_INLINE_LAMBDA {
    const Floats normed = mul(sub(load_elements(x + c, n), mean), rstd);
    store_elements(to + c, fma(normed, load_elements(weight + c, n), load_elements(bias + c, n)), n);
  });
}

template <class T>
void layer_norm_bwd(const NormRowGradient& row) {
  const T *x = static_cast<const T*>(row.x), *dout = static_cast<const T*>(row.dout);
  const T* dsum = static_cast<const T*>(row.dsum);
  const Floats mean = splat(row.mean), rstd = splat(row.rstd);
  const auto normed = [&](int64_t c, int64_t n) MBT_FAST_INLINE_LAMBDA {
    return mul(sub(load_elements(x + c, n), mean), rstd);
  };
  Floats products[kSums] = {zeros(), zeros(), zeros(), zeros()};
  const auto g_and_sums = [&](int64_t c, int64_t n, int chain) MBT_FAST_INLINE_LAMBDA {
    const Floats dy = load_elements(dout + c, n), y = normed(c, n);
    const Floats g = mul(dy, load_elements(row.weight + c, n));
    products[chain] = fma(g, y, products[chain]);
    store_elements(row.dweight + c, fma(dy, y, load_elements(row.dweight + c, n)), n);
    store_elements(row.dbias + c, add(dy, load_elements(row.dbias + c, n)), n);
    return g;
  };
  const float count = static_cast<float>(row.channels);
  const Floats mean_g = splat(sum_over(row.channels, g_and_sums) / count);
  const Floats all = add(add(products[0], products[1]), add(products[2], products[3]));
  const Floats mean_gy = splat(sum_lanes(all) / count);
  T* dx = static_cast<T*>(row.dx);
  for_each_vector<kLanes>(row.channels, [&](int64_t c, int64_t n) MBT_FAST_INLINE_LAMBDA {
    const Floats g = mul(load_elements(dout + c, n), load_elements(row.weight + c, n));
    const Floats centred = sub(g, fma(normed(c, n), mean_gy, mean_g));
    const Floats more = dsum ? load_elements(dsum + c, n) : zeros();
    store_elements(dx + c, fma(centred, rstd, more), n);
  });
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
