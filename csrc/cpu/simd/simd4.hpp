// Four vectors at once, so that the dependent operations of a long formula overlap.
//
// One GELU is a chain of some 25 dependent operations. With four chains side by side the core waits
// less for results.
#pragma once

#include "../common.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

struct Simd4 {
  static constexpr int kCount = 4;  // with AVX2 too, where some constants stay in memory
  Floats of[kCount];

  Simd4() = default;
  MBT_FAST_INLINE Simd4(Floats same) {  // a constant stands for as many
    for (Floats& one : of) one = same;
  }
};

// f of each vector, or of each pair or triple of them.
template <class F, class... More>
MBT_FAST_INLINE Simd4 each(const F& f, const Simd4& a, const More&... more) {
  Simd4 result;
  for (int i = 0; i < Simd4::kCount; ++i) result.of[i] = f(a.of[i], more.of[i]...);
  return result;
}

#define MBT_FAST_EACH(name, parameters, ...)                                               \
  MBT_FAST_INLINE Simd4 name parameters {                                                  \
    return each([](auto... x) MBT_FAST_INLINE_LAMBDA { return name(x...); }, __VA_ARGS__); \
  }

MBT_FAST_EACH(add, (const Simd4& a, const Simd4& b), a, b)
MBT_FAST_EACH(sub, (const Simd4& a, const Simd4& b), a, b)
MBT_FAST_EACH(mul, (const Simd4& a, const Simd4& b), a, b)
MBT_FAST_EACH(div, (const Simd4& a, const Simd4& b), a, b)
MBT_FAST_EACH(finite_exponent, (const Simd4& a), a)
MBT_FAST_EACH(fraction, (const Simd4& a), a)
MBT_FAST_EACH(minus_abs, (const Simd4& a), a)
MBT_FAST_EACH(times_power_of_floor, (const Simd4& p, const Simd4& x), p, x)
MBT_FAST_EACH(fma, (const Simd4& a, const Simd4& b, const Simd4& c), a, b, c)
MBT_FAST_EACH(where_negative, (const Simd4& x, const Simd4& a, const Simd4& b), x, a, b)

#undef MBT_FAST_EACH

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
