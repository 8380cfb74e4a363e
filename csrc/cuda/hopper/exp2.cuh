// exp2 on the units for multiply-adds: as exact as the special function units, which do only a
// sixteenth of what those do, and with 64 channels are what limits the forward.
#pragma once

#include <cmath>

#include "instructions.cuh"

namespace mbt_fast::cuda {

// 2^x = 2^n p(x - n) with the integer n next to x. p is the polynomial of degree 5 whose relative
// error over [-1/2, 1/2] is least, 9e-8. NaN stays NaN, and below 2^-126 there is only 0.
// x must be less than 127.
MBT_DEVICE float exp2_polynomial(float x) {
  constexpr float kIntegers = 12582912.0f;  // 1.5 * 2^23: sums with it are rounded to integers
  x = max_or_nan(x, -127.0f);               // then the power is 0
  const float shifted = x + kIntegers;
  const float rest = x - (shifted - kIntegers);
  float p = fmaf(1.3264727e-3f, rest, 9.6715130e-3f);
  p = fmaf(p, rest, 5.5507336e-2f);
  p = fmaf(p, rest, 2.4022242e-1f);
  p = fmaf(p, rest, 6.9314700e-1f);
  p = fmaf(p, rest, 1.0f);
  const float power = float_of((bits_of(shifted) << 23) + bits_of(1.0f));
  return p * power;
}

}  // namespace mbt_fast::cuda
