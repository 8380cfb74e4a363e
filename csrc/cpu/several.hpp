// Several vectors at once, so that the chains of a long formula overlap.
//
// One GELU is a chain of some 25 dependent operations. Side by side, four chains come in an order that
// leaves the core less to wait for: a tenth to a fifth of the time (README.md).
#pragma once

#include "common.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

constexpr int kSeveral = 4;  // with AVX2 too, where some constants stay in memory

struct Several {
  Floats of[kSeveral];

  Several() = default;
  MBT_FAST_INLINE Several(Floats same) {  // a constant stands for as many
    for (Floats& one : of) one = same;
  }
};

// f of each vector, or of each pair or triple of them.
template <class F, class... More>
MBT_FAST_INLINE Several each(const F& f, const Several& a, const More&... more) {
  Several result;
  for (int i = 0; i < kSeveral; ++i) result.of[i] = f(a.of[i], more.of[i]...);
  return result;
}

#define MBT_FAST_EACH(name, parameters, ...)                                               \
  MBT_FAST_INLINE Several name parameters {                                                \
    return each([](auto... x) MBT_FAST_INLINE_LAMBDA { return name(x...); }, __VA_ARGS__); \
  }

MBT_FAST_EACH(add, (const Several& a, const Several& b), a, b)
MBT_FAST_EACH(sub, (const Several& a, const Several& b), a, b)
MBT_FAST_EACH(mul, (const Several& a, const Several& b), a, b)
MBT_FAST_EACH(div, (const Several& a, const Several& b), a, b)
MBT_FAST_EACH(finite_exponent, (const Several& a), a)
MBT_FAST_EACH(fraction, (const Several& a), a)
MBT_FAST_EACH(minus_abs, (const Several& a), a)
MBT_FAST_EACH(times_power_of_floor, (const Several& p, const Several& x), p, x)
MBT_FAST_EACH(fma, (const Several& a, const Several& b, const Several& c), a, b, c)
MBT_FAST_EACH(where_negative, (const Several& x, const Several& a, const Several& b), x, a, b)

#undef MBT_FAST_EACH

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
