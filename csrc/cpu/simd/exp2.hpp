// 2^x = 2^floor(x) * p(x - floor(x)), p a polynomial on [0, 1].
//
// The coefficients minimise the largest relative error, with p(0) = 1, so that exp2(0) is exact:
//   degree 5: 8.2e-8, in float32 1.4e-7      degree 6: 2.0e-9, in float32 6.4e-8
// Less would do for probabilities that are rounded to bfloat16, but their sum is the log-sum-exp, a
// float32. NaN gives NaN, -infinity gives 0; arguments above 127 do not occur, because softmax
// shifts them to 0 at most.
#pragma once

#include "../common.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

template <int Degree>
struct Exp2;

template <>
struct Exp2<5> {
  static constexpr float kCoefficients[] = {0.69315130f, 0.24016444f, 0.055799913f, 0.0090170298f,
                                            0.0018671302f};
};
template <>
struct Exp2<6> {
  static constexpr float kCoefficients[] = {0.69314706f,   0.24022931f,   0.055485282f,
                                            0.0096754516f, 0.0012467846f, 0.00021612916f};
};

// V is one vector, or several side by side.
template <int Degree, class V>
MBT_FAST_INLINE V exp2(V x) {
  x = finite_exponent(x);
  const V f = fraction(x);
  V p = splat(Exp2<Degree>::kCoefficients[Degree - 1]);
  for (int i = Degree - 2; i >= 0; --i) p = fma(p, f, splat(Exp2<Degree>::kCoefficients[i]));
  return times_power_of_floor(fma(p, f, splat(1.0f)), x);
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
