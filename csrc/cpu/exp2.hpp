// 2^x by a polynomial on [-1/2, 1/2] and the exponent's addition.
//
// The coefficients minimise the largest relative error, with p(0) = 1, so that exp2(0) is exact:
//   degree 5: 9.1e-8      degree 6: 2.0e-9
// Less would do for probabilities that are rounded to bfloat16, but their sum is the log-sum-exp, a
// float32.
// NaN gives NaN, -infinity gives 0. Arguments above 127 do not occur: softmax shifts them below 1.
#pragma once

#include "common.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

template <int Degree>
struct Exp2;

template <>
struct Exp2<5> {
  static constexpr float kCoefficients[] = {0.69314700f, 0.24022242f, 0.055507336f, 0.0096715130f,
                                            0.0013264727f};
};
template <>
struct Exp2<6> {
  static constexpr float kCoefficients[] = {0.69314718f,  0.24022648f,   0.055503324f,
                                            0.0096184369f, 0.0013398875f, 0.00015353362f};
};

template <int Degree>
MBT_FAST_INLINE Floats exp2(Floats x) {
  // Below this even denormals end; without it -infinity would become -infinity - -infinity.
  x = max(splat(-160.0f), x);  // the second operand wins if it is NaN
  const Floats n = round(x), f = sub(x, n);
  Floats p = splat(Exp2<Degree>::kCoefficients[Degree - 1]);
  for (int i = Degree - 2; i >= 0; --i) p = fma(p, f, splat(Exp2<Degree>::kCoefficients[i]));
  return scale_by_power(fma(p, f, splat(1.0f)), n);
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
